"""What a cache counts: of each expert, and of each layer."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

#: Recorded batches that an expert's recent rate is a mean of.
RECENT_BATCHES = 100


@dataclass
class ExpertStats:
    """How often tokens chose an expert. recent_window: how many of each of the last 100 batches, oldest first."""

    expert_id: int
    activation_count: int = 0
    total_tokens: int = 0
    recent_window: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT_BATCHES))

    def record_activation(self, count: int = 1) -> None:
        """`count` tokens of a batch chose the expert."""
        self.activation_count += count
        self.recent_window.append(count)

    def record_batch(self, tokens: int) -> None:
        """A batch of `tokens` tokens went by, whether they chose the expert or not."""
        self.total_tokens += tokens

    @property
    def activation_rate(self) -> float:
        """Activations per token; 0 before the first token."""
        return self.activation_count / self.total_tokens if self.total_tokens else 0.0

    @property
    def recent_rate(self) -> float:
        """Activations per batch, over the last 100 of them."""
        return sum(self.recent_window) / len(self.recent_window) if self.recent_window else 0.0


@dataclass
class LayerStats:
    """What a cache did for a layer, and which experts it used.

    cache_hits + cache_misses: lookups. joined: of the misses, those that another thread was loading already.
    prefetch_hits: of the hits, each prefetched object's first. evictions: objects that left for want of room.
    """

    layer_idx: int
    expert_stats: dict[int, ExpertStats] = field(default_factory=dict)
    cache_hits: int = 0
    cache_misses: int = 0
    prefetch_hits: int = 0
    joined: int = 0
    evictions: int = 0
    total_tokens: int = 0
    total_batches: int = 0

    @property
    def hit_rate(self) -> float:
        """cache_hits / lookups; 0 without lookups."""
        lookups = self.cache_hits + self.cache_misses
        return self.cache_hits / lookups if lookups else 0.0

    def get_expert_stats(self, expert_id: int) -> ExpertStats:
        """The expert's statistics; those of a new one begin as idle in the batches that the layer has seen."""
        if expert_id not in self.expert_stats:
            stats = ExpertStats(expert_id, total_tokens=self.total_tokens)
            stats.recent_window.extend([0] * min(self.total_batches, RECENT_BATCHES))
            self.expert_stats[expert_id] = stats
        return self.expert_stats[expert_id]

    def record_batch(self, counts: Mapping[int, int], tokens: int) -> None:
        """A batch of `tokens` tokens, `counts` of which chose each expert. Experts that it left idle cool down."""
        for expert_id in counts:
            self.get_expert_stats(expert_id)
        for expert_id, stats in self.expert_stats.items():
            stats.record_activation(counts.get(expert_id, 0))
            stats.record_batch(tokens)
        self.total_tokens += tokens
        self.total_batches += 1

    def get_hot_experts(self, threshold: float = 0.1, top_k: int | None = None) -> list[int]:
        """Experts whose recent rate is at least `threshold`, hottest first, the lower id first of equals."""
        hot = [stats for stats in self.expert_stats.values() if stats.recent_rate >= threshold]
        hot.sort(key=lambda stats: (-stats.recent_rate, stats.expert_id))
        return [stats.expert_id for stats in hot[:top_k]]
