"""The rows of bench/decode.py, from what its workers answered."""
import statistics

from bench.decode_files import token_bytes
from bench.decode_sizes import SIZES

PROMPT, COUNT, LONG = 32, 64, 512
DTYPES = {"f32": "float32", "f16": "bfloat16"}          # PyTorch's; float16 is slower on most processors
CLOSE = 0.2                                             # standard deviations of the scores: see agreement()
MB = 1e6
FIGURES = ("tok_s", "ratio", "prompt_tok_s", "first_token_s", "peak_mb", "limit_mb", "of_limit", "bytes_per_token",
           "gb_s", "bandwidth_gb_s", "of_bandwidth", "of_cached", "n", "disturbed")


def speed(run):
    """Tokens a second after the first token."""
    return (len(run["known"]) - 1) / (run["known"][-1] - run["known"][0])


def failure(size, form, name, message):
    """The row of an engine that does not run the model."""
    return {"size": size, "format": form, "impl": name} | dict.fromkeys(FIGURES) | {"notes": message.split(": ")[-1]}


def row(size, form, name, first_token_s, turns, reader, file_bytes):
    """The row of an engine, from its turns and the reader's: [(answer, disturbed), ...]."""
    if errors := [answer["error"] for answer, _ in turns if "error" in answer]:
        return failure(size, form, name, errors[0])
    runs = [run for answer, _ in turns for run in answer["runs"]]
    rate = statistics.median(speed(run) for run in runs if len(run["known"]) > 1)
    prompt = statistics.median(LONG / (run["known"][0] - run["begin"]) for run in runs if len(run["known"]) == 1)
    needed = token_bytes(size, form)
    memory, cached = (statistics.median(answer[of] for answer, _ in reader) for of in ("memory", "same_size"))
    peak = max(answer["peak_rss"] for answer, _ in turns)
    keys_values = SIZES[size].cache(LONG + 1, 4 if form == "f32" else 2)
    limit = 1.1 * file_bytes + keys_values + 64 * MB
    return {"size": size, "format": form, "impl": name, "tok_s": rate, "ratio": None, "prompt_tok_s": prompt,
            "first_token_s": first_token_s, "peak_mb": peak / MB, "limit_mb": limit / MB, "of_limit": peak / limit,
            "bytes_per_token": needed, "gb_s": rate * needed / 1e9, "bandwidth_gb_s": memory / 1e9,
            "of_bandwidth": rate * needed / memory, "of_cached": rate * needed / cached, "n": len(turns),
            "disturbed": sum(disturbed for _, disturbed in turns), "notes": turns[0][0]["notes"]}


def beside(rows, rival="llamacpp"):
    """A list of the rows, each with the ratio of its tokens a second to the rival's."""
    theirs = next((row["tok_s"] for row in rows if row["impl"] == rival), None)
    return [row | {"ratio": row["tok_s"] / theirs if row["tok_s"] and theirs else None} for row in rows]


def agreement(size, form, ours, theirs, gaps):
    """The row same_tokens: do pyllama and llama.cpp choose the same tokens from the same file?

    ours, theirs    ids that each engine generated
    gaps            how far the score that pyllama gives to each of llama.cpp's tokens, after llama.cpp's tokens so far,
                    is below its best score, in standard deviations of the scores: 0 where both choose the same

    Rounding may turn the order of two scores that are close to each other.  Of random scores the best is some 4
    standard deviations above the mean, so a token of another model has a gap of about that.
    """
    alike = next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), len(theirs))
    return {"size": size, "format": form, "impl": "same_tokens", "same": sum(gap == 0 for gap in gaps),
            "of": len(gaps), "largest_gap": max(gaps), "alike_from_the_start": alike, "agree": max(gaps) < CLOSE}
