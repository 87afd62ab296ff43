"""The exercise of chapter 00."""
from ..support.setup import SetupReport
from .core import Exercise

# Ready?

def is_ready(report):
    "True unless the advice of some row begins with 'needs'."
    return not any(advice.startswith("needs") for _, _, advice in report.rows)


QUIET = ["", "", "Fine for everything. With a network you get MNIST, forty times as many images.",
         "Your GPU is off. Menu Settings → Accelerator → GPU, then run this notebook again."]
LOUD = ["No GPU needed: every chapter of the course is made to run on a CPU.", "not needed here: this notebook is open"]


def reports(rng):
    "Rows of reports that want nothing, of such that want something in one place, and of such that want much."
    found = []
    for places in ((), (), (), (0,), (1,), (3,), (5,), (0, 1, 2, 3, 4, 5), *(rng.sample(range(6), rng.randrange(3)) for _ in range(9))):
        advice = QUIET + (LOUD if found else QUIET[-2:])  # in the first report nothing sounds like a need
        missing = rng.sample(range(6), len(found) > 1)
        rows = [(f"package {i}", "missing" if i in missing else "1.0", said) for i, said in enumerate(rng.sample(advice, 6))]
        for i in places:
            rows[i] = (rows[i][0], rng.choice(["1.0", "missing"]), f"needs package{i}>=3: pip install 'package{i}>=3'")
        found.append({"rows": rows})
    return rng.sample(found, len(found))


def by_rows(what, finds=any):
    "The opposite of: `what(found, advice)` is true of any row."
    return lambda report: not finds(what(found, advice) for _, found, advice in report.rows)


def at_the_first(report):
    for _, _, advice in report.rows: return not advice.startswith("needs")


def of_the_last(report):
    for _, _, advice in report.rows: ready = not advice.startswith("needs")
    return ready


IS_READY = Exercise(
    "00", is_ready, '''
def is_ready(report):
    "True unless the advice of some row begins with 'needs'."
    return True                                  # replace this
''',
    hints=("What does a row consist of, and which part of it says what you have to do?",
           "Each row is (what, found, advice), and advice is a text. Go through all of report.rows; text.startswith(\"needs\") tells.",
           "for what, found, advice in report.rows: as soon as one advice begins with \"needs\", the answer is False."),
    mistakes={
        "You return the opposite: True where something is needed.":
            lambda report: any(advice.startswith("needs") for _, _, advice in report.rows),
        "The reports of this check have no verdict in .ok. Work it out from their rows.": lambda report: report.ok,
        "\"No GPU needed\" has the word in it and asks for nothing. Look at how the advice begins.":
            by_rows(lambda found, advice: "need" in advice),
        "Not every advice is a demand: some only say that all is well. Look at how it begins.": by_rows(lambda found, advice: advice != ""),
        "You look at what is missing. A package that is too old needs attention too, and one that is missing may not be needed.":
            by_rows(lambda found, advice: found == "missing"),
        "You say no only if every row needs something. One such row is enough.":
            by_rows(lambda found, advice: advice.startswith("needs"), all),
        "You return at the first row, whatever the others say. True can only be said after the last one.": at_the_first,
        "Only the last row decides in your answer: each one overwrites the verdict of those before.": of_the_last},
    cases=reports, run=lambda answer, rows: {"what it returns": answer(SetupReport(rows, None))},
    truth=lambda rows: {"what it returns": "\nneeds" not in "".join(f"\n{advice}" for *_, advice in rows)},
    why="any is true as soon as one row's advice begins with \"needs\"; a report is ready if there is no such row.")

EXERCISES = [IS_READY]
