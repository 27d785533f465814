def build_info() -> dict[str, str]: ...
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
    batch: int,
    free_steps: int,
    nudged_steps: int,
    number_bytes: int,
    continual: bool,
    update: str,
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]: ...
