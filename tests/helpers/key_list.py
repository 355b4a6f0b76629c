"""Print the list of keys for the README of metrics: `python -m tests.helpers.key_list`."""

from genstab.metrics.registry import metrics


def key_list() -> str:
    """Return a Markdown table of every log key with its unit, the better direction and its meaning."""
    words = {"max": "higher", "min": "lower"}
    rows = ["| key | name | unit | better | meaning |", "|---|---|---|---|---|"]
    for metric in metrics().values():
        if metric.key.startswith("val/"):
            meaning = metric.meaning if metric.in_training else f"{metric.meaning} (`genstab measure` only)"
            rows.append(
                f"| `{metric.key}` | {metric.name} | {metric.unit} | {words.get(metric.better, '')} | {meaning} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    print(key_list())
