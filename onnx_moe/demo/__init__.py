"""The main job on real input: what `onnx-moe demo` shows."""
