"""What the gate has found, as rows (for the terminal and the model card) or in a line."""

from __future__ import annotations

from dragoman_server.manifest import Gate, Manifest

__all__ = ["finding_of", "report_rows"]

_OUTCOMES = {"same": "torch's translation", "other": "another translation", "failed": "FAILED"}


def report_rows(manifest: Manifest) -> list[list[str]]:
    """A heading, which names the precisions, and a row for everything that was checked."""
    gates = dict(sorted(manifest.gates.items()))
    columns = [_column(manifest, precision, gate) for precision, gate in gates.items()]
    labels = dict.fromkeys(label for column in columns for label in column)
    return [
        ["compared with torch", *gates],
        *([label, *(column.get(label, "-") for column in columns)] for label in labels),
    ]


def _column(manifest: Manifest, precision: str, gate: Gate) -> dict[str, str]:
    """What is said of one precision, by label."""
    bound = f", at most {gate.tolerance:g}"
    fp32 = precision == "fp32"
    graphs = manifest.precisions[precision]
    size = sum(manifest.files[name].bytes for name in (graphs.encoder, graphs.decode_step))
    return {
        "checked on": "the CPU provider",
        "sentences, decoder steps": f"{gate.sentences}, {gate.steps}",
        "largest log-prob difference": f"{gate.max_log_prob_difference:.1e}{bound if fp32 else ''}",
        "mean log-prob lost": f"{gate.mean_log_prob_loss:.1e}{'' if fp32 else bound}",
        "greedy translations equal": f"{gate.greedy_agreement:.1%}",
        "beam translations equal": f"{gate.beam_agreement:.1%}",
        "same alone and in company": f"{gate.same_alone:.1%}",
        **{f"text: {case}": _OUTCOMES[outcome] for case, outcome in gate.behaviour.items()},
        **{f"{one.metric} on {one.test_set}": f"{one.value:.2f}" for one in gate.scores},
        "activation scales": graphs.activation_scales,
        "size of the graphs": f"{size / 2**20:.1f} MiB",
    }


def finding_of(gate: Gate, fault: str) -> str:
    """What is wrong with a precision, to follow its name.

    Args:
        gate: Of that precision.
        fault: The part at fault, in words.
    """
    return (
        f"does not say what the checkpoint says. At fault: {fault}. Log-probabilities differ by up to "
        f"{gate.max_log_prob_difference:.2g}, torch's tokens lose {gate.mean_log_prob_loss:.2g} on average "
        f"(tolerance {gate.tolerance:g}), {gate.greedy_agreement:.1%} of the greedy and "
        f"{gate.beam_agreement:.1%} of the beam translations agree, {gate.same_alone:.1%} are the same alone "
        f"and in company{_odd(gate)}"
    )


def _odd(gate: Gate) -> str:
    """The odd texts that it does not translate as torch does."""
    found = [f"{case} ({outcome})" for case, outcome in gate.behaviour.items() if outcome != "same"]
    return f"; texts translated otherwise: {', '.join(found)}" if found else ""
