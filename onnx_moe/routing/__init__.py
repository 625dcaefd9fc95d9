"""Routing analysis: which experts tokens choose, and what that means for a cache of experts (docs/routing.md).

Record a session (`record`), load a file (`load_trace`), simulate (`simulate_routing`) or feed `MoERoutingProfiler`;
then `profile_trace`, `plan`, `simulate_cache`, `compare`. `onnx_moe.routing.report` writes reports.
"""

from __future__ import annotations

from onnx_moe.routing.balance import BalanceHistory, balance_of
from onnx_moe.routing.cache_simulation import POLICIES, CacheResult, CacheSetup, SlotDivision, simulate_cache
from onnx_moe.routing.counters import profile_counters, profile_recording, write_counter_file
from onnx_moe.routing.drift import RoutingDrift, compare
from onnx_moe.routing.experts import (
    ExpertCooccurrence,
    ExpertLoadStats,
    LayerRoutingProfile,
    LoadThresholds,
    RoutingPredictability,
)
from onnx_moe.routing.hit_rates import HitRateCurves, HitRates, hit_rate_curves
from onnx_moe.routing.models import KNOWN_MODELS, KnownModel, known_model
from onnx_moe.routing.planning import Machine, Operation, Plan, plan
from onnx_moe.routing.probabilities import router_probabilities
from onnx_moe.routing.profile import ProfiledModel, RoutingProfile, profile_trace
from onnx_moe.routing.profiler import MoERoutingProfiler, simulate_routing_for_model
from onnx_moe.routing.recording import LayerCounters, Recording, record
from onnx_moe.routing.scoreboard import History, Predictor, Score, default_predictors, scoreboard
from onnx_moe.routing.simulation import RoutingSimulator, RoutingStyle, simulate_routing
from onnx_moe.routing.sketch import RoutingSketch
from onnx_moe.routing.sources import load_trace, save_trace
from onnx_moe.routing.trace import Call, RoutingTrace

__all__ = [
    "KNOWN_MODELS",
    "POLICIES",
    "BalanceHistory",
    "CacheResult",
    "CacheSetup",
    "Call",
    "ExpertCooccurrence",
    "ExpertLoadStats",
    "History",
    "HitRateCurves",
    "HitRates",
    "KnownModel",
    "LayerCounters",
    "LayerRoutingProfile",
    "LoadThresholds",
    "Machine",
    "MoERoutingProfiler",
    "Operation",
    "Plan",
    "Predictor",
    "ProfiledModel",
    "Recording",
    "RoutingDrift",
    "RoutingPredictability",
    "RoutingProfile",
    "RoutingSimulator",
    "RoutingSketch",
    "RoutingStyle",
    "RoutingTrace",
    "Score",
    "SlotDivision",
    "balance_of",
    "compare",
    "default_predictors",
    "hit_rate_curves",
    "known_model",
    "load_trace",
    "plan",
    "profile_counters",
    "profile_recording",
    "profile_trace",
    "record",
    "router_probabilities",
    "save_trace",
    "scoreboard",
    "simulate_cache",
    "simulate_routing",
    "simulate_routing_for_model",
    "write_counter_file",
]
