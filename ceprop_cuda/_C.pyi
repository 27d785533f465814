from collections.abc import Sequence
from typing import Any

from torch import Tensor

def build_info() -> dict[str, str]: ...
def check_writable(weights: Sequence[Tensor], biases: Sequence[Tensor], feedback_weights: Sequence[Tensor]) -> None: ...
def allowed_threads() -> int: ...
def new_states(x: Tensor, shapes: Sequence[Sequence[int]], phases: int) -> list[Tensor]: ...

# With the arguments of torch.ops.ceprop_cuda, see library.cpp, by their places.
def relax(*arguments: Any) -> tuple[list[Tensor], Tensor]: ...
def ep_step(*arguments: Any) -> tuple[Any, ...]: ...
def cep_step(*arguments: Any) -> Tensor: ...
def step_costs(
    *,
    widths: list[int],
    readout: bool,
    free_feedback: bool,
    asynchronous: bool,
    symmetric: bool,
    accumulate: bool,
    shared_update: bool,
    weight_decay: bool,
    literal_input: bool,
    batch: int,
    free_steps: int,
    nudged_steps: int,
    number_bytes: int,
    continual: bool,
    update: str,
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]: ...
def cuda_device(index: int) -> dict[str, int]: ...  # where CUDA was built
def launch_plan(
    *,
    multiprocessors: int,
    shared_bytes: int,
    cluster_blocks: int,
    clusters: int,
    widths: Sequence[int],
    asynchronous: bool,
    batch: int,
    number_bytes: int,
    continual: bool,
    tolerance: bool,
) -> dict[str, Any]: ...
def map_plan(
    *,
    multiprocessors: int,
    shared_bytes: int,
    cluster_blocks: int,
    clusters: int,
    maps: Sequence[tuple[int, int, int]],
    convolutions: Sequence[tuple[int, ...]],
    pools: Sequence[str],
    readout: bool,
    free_feedback: bool,
    asynchronous: bool,
    batch: int,
    number_bytes: int,
) -> dict[str, Any]: ...
