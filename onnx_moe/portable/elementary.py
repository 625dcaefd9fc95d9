"""Elementary functions in standard operators, as accurate as float32 allows.

ONNX Runtime's Sigmoid and Softplus are accurate only in absolute terms: far below zero all digits are lost.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_moe.portable.builder import BodyBuilder


def to_float(op: BodyBuilder, value: ir.Value) -> ir.Value:
    return op.Cast(value, to=ir.DataType.FLOAT)


def sigmoid(op: BodyBuilder, x: ir.Value) -> ir.Value:
    return op.Reciprocal(op.Add(op.Exp(op.Neg(x)), 1.0))


def softplus(op: BodyBuilder, x: ir.Value) -> ir.Value:
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|).

    log1p(u) = log(v) * u / (v - 1) with v = 1 + u rounded (Kahan), and u where v is 1.
    """
    u = op.Exp(op.Neg(op.Abs(x)))
    v = op.Add(u, 1.0)
    is_one = op.Equal(v, 1.0)
    divisor = op.Where(is_one, 1.0, op.Sub(v, 1.0))
    log1p = op.Where(is_one, u, op.Mul(op.Log(v), op.Div(u, divisor)))
    return op.Add(op.Max(x, 0.0), log1p)
