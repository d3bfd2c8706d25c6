"""Reduces interactions that are too many for one machine, with Spark, and can then write the dataset (docs/scale.md).

    spark-submit deploy/spark_interactions.py --pipeline shop.toml --data hdfs:///shop/raw --out hdfs:///shop/reduced --preprocess mp4sr

It reads the files of `source.interactions`, applies the pipeline's `preprocess.repeated`, `user_core` and `item_core`, and writes the
remaining lines of each file, unchanged and in order, to the folder `OUT/<file>`. It prints counts on standard output. The remaining lines
are those of the events that are kept, and the first line of every user and item that is kept, because it determines their numbers. With
`--preprocess`, the driver then copies these lines to the pipeline's `dataset.data` and runs `mp4sr preprocess`, which writes the same
dataset from them as from all lines.

The files must be JSON lines, or delimited text with a header and without quotation marks, in UTF-8, with or without gzip (`.gz`). Times
must be Unix times. Other formats and settings are refused; docs/scale.md describes which lines may still be read differently. The job
requires Spark 4.
"""
import argparse, collections, datetime, decimal, gzip, json, os, subprocess, sys, tomllib
from pyspark import StorageLevel
from pyspark.sql import SparkSession, Window, functions as F

# The fields of the user, the item and the time, and the unit of time. Of several fields for the item, the first one in a line is used.
FIELDS = {"amazon-2014": ("reviewerID", ("asin",), "unixReviewTime", "s"), "amazon-2018": ("reviewerID", ("asin",), "unixReviewTime", "s"),
          "amazon-2023": ("user_id", ("parent_asin", "asin"), "timestamp", "ms")}
PRESETS = {"strict-5core": (5, 5), "released": (5, 0), "table1": (5, 0)}
# The number of decimal digits of a second in each unit; the bounds of Unix times are those of `mp4sr preprocess`.
DIGITS = {"s": 0, "seconds": 0, "ms": 3, "milliseconds": 3, "us": 6, "microseconds": 6, "ns": 9, "nanoseconds": 9}
EARLIEST, LATEST = 100_000_000, 4_102_444_800
# The supported values of the keys that determine which events `mp4sr preprocess` reads; the first value is the default.
SUPPORTED = {
    "source.format": ("amazon-2018", "amazon-2014", "amazon-2023", "tabular", "recbole"),
    "source.time": ("", *DIGITS),
    "source.encoding": ("", "utf-8", "UTF-8"), "source.quoting": ("recognised",), "source.quote_escape": ("",),
    "source.decimal_comma": (False,), "source.interactions_header": ([],),
    "source.columns.position": ("",), "source.columns.item_separator": ("",),
    "preprocess.where": ("",), "preprocess.since": ("",), "preprocess.until": ("",), "preprocess.recent": (0,),
    "preprocess.items_without_events": ("drop",), "preprocess.repeated": ("last", "first", "all"), "preprocess.preset": tuple(PRESETS),
}
# The number of lines after the header from which the unit of time is recognised, and the percentage of them that may have another unit.
SAMPLED, STRAYS = 1000, 5
# Blanks around an id, and marks of missing values in any letter case and in exactly this one, as for `mp4sr preprocess`.
BLANKS_AROUND = r"^\p{IsWhite_Space}+|\p{IsWhite_Space}+$"
MARKS, EXACT = ["(no genres listed)", "#n/a", "<na>", "n/a", "nan", "none", "null", "undefined"], ["NA", "NaT", "\\N"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for flag in ("--pipeline", "--data", "--out"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--preprocess", metavar="PROGRAM", help="run `PROGRAM preprocess` on the remaining lines")
    args = parser.parse_args()
    with open(args.pipeline, "rb") as file:
        pipeline = tomllib.load(file)
    for key, supported in SUPPORTED.items():
        value = setting(pipeline, key)
        if value not in supported:
            refuse(f"`{key}` = {json.dumps(value)} is not supported by this job")
    files = pipeline.get("source", {}).get("interactions") or refuse("`source.interactions` is empty", "name the files")
    copies = copies_of(files, pipeline) if args.preprocess else {}
    user_core, item_core = PRESETS[setting(pipeline, "preprocess.preset")]
    settings = pipeline.get("preprocess", {})
    bounds = {"user": settings.get("user_core", user_core), "item": settings.get("item_core", item_core)}
    spark = SparkSession.builder.appName("mp4sr interactions").getOrCreate()
    # By default, Spark 4 fails on a time that is not a number. With this setting, the time is null and the line is rejected.
    spark.conf.set("spark.sql.ansi.enabled", "false")
    for path in (spark._jvm.org.apache.hadoop.fs.Path(f"{args.out}/{name}") for name in files):
        if path.getFileSystem(spark._jsc.hadoopConfiguration()).exists(path):
            refuse(f"`{path}` exists", "remove it, or name another folder with `--out`")

    # Identifies a line by the number of its file, the start of its block and its position there, which also orders all lines.
    position = F.struct(F.col("file"), F.col("_metadata.file_block_start").alias("block"), F.monotonically_increasing_id().alias("row"))
    read = [spark.read.text(f"{args.data}/{name}", lineSep="\n").withColumn("file", F.lit(number)).select("file", position.alias("at"), "value",
            parsed(spark, f"{args.data}/{name}", pipeline).alias("event")) for number, name in enumerate(files)]
    lines = read[0]
    for further in read[1:]:
        lines = lines.unionAll(further)
    lines = lines.persist(StorageLevel.DISK_ONLY)
    refused = lines.where("event.refused is not null").select("event.refused").first()
    if refused:
        refuse(refused[0])
    accepted = lines.where("event.problem is null and event.time is not null")
    for key in bounds:
        accepted = accepted.where(F.col(f"event.{key}") != "")
    accepted = accepted.select("at", "event.user", "event.item", "event.time").persist(StorageLevel.DISK_ONLY)
    is_header = F.coalesce(F.col("event.problem") == "header", F.lit(False))
    counts = {"lines": lines.where(~is_header).count(), "raw": sizes(accepted)}
    counts["rejected"] = counts["lines"] - counts["raw"]["events"]
    if counts["raw"]["events"] == 0:
        refuse(f"none of the {counts['lines']} lines has a user, an item and a Unix time", "correct `source.columns` or `source.time`")
    limit = settings.get("max_bad_lines", 1_000_000)
    if counts["rejected"] > limit:
        refuse(f"{counts['rejected']} lines cannot be used, more than `preprocess.max_bad_lines` = {limit}", "correct the files, or raise the limit")
    share = settings.get("max_bad_share", 0.5)
    if counts["rejected"] > share * counts["lines"]:
        refuse(f"{counts['rejected']} of {counts['lines']} lines cannot be used, a larger share than `preprocess.max_bad_share` = {share}", "correct the files, or raise the share")

    events = accepted
    repeated = setting(pipeline, "preprocess.repeated")
    if repeated != "all":
        order = [F.desc("time"), F.desc("at")] if repeated == "last" else [F.asc("time"), F.asc("at")]
        rank = F.row_number().over(Window.partitionBy("user", "item").orderBy(*order))
        events = events.withColumn("rank", rank).where("rank = 1").drop("rank")
    # The checkpoint keeps the events on the disks of the cluster. If a machine is lost, the job fails and must be started again.
    events = events.localCheckpoint()
    counts["without repeats"] = sizes(events)
    before, left = None, counts["without repeats"]["events"]
    while before != left:
        before = left
        for key, bound in bounds.items():
            frequent = events.groupBy(key).count().where(F.col("count") >= bound).select(key)
            events = events.join(frequent, key, "left_semi")
        events = events.localCheckpoint()
        left = events.count()
    counts["in the core"] = sizes(events)

    kept = events.select("at")
    for key in bounds:
        firsts = accepted.join(events.select(key).distinct(), key, "left_semi").groupBy(key).agg(F.min("at").alias("at"))
        kept = kept.unionAll(firsts.select("at"))
    # `mp4sr preprocess` rejects an empty file, so each file keeps a line.
    kept = kept.unionAll(accepted.groupBy("at.file").agg(F.min("at").alias("at")).select("at"))
    kept = lines.join(kept.distinct(), "at", "left_semi").select(lines.columns).unionAll(lines.where(is_header))
    of_files = {name: kept.where(F.col("file") == number).orderBy("at").select("value") for number, name in enumerate(files)}
    for name, of_file in of_files.items():
        of_file.write.text(f"{args.out}/{name}", compression="gzip" if name.endswith(".gz") else "none", lineSep="\n")
    print(json.dumps(counts))
    if args.preprocess:
        for name, of_file in of_files.items():
            copy(of_file, copies[name])
        # The reduction used only the pipeline file, so settings of the environment must not apply. Standard output has only the counts.
        environment = {key: value for key, value in os.environ.items() if key not in ("MP4SR_SET", "MP4SR_DATA")}
        command = [args.preprocess, "preprocess", "--pipeline", args.pipeline]
        sys.exit(subprocess.run(command, stdout=sys.stderr, env=environment).returncode)


def copies_of(files, pipeline):
    """Returns the paths in `dataset.data` to which the remaining lines of the files are copied, by file."""
    data = pipeline.get("dataset", {}).get("data") or refuse("`dataset.data` is empty", "name the folder of the items files")
    copies = {name: os.path.join(data, name) for name in files}
    for path in copies.values():
        if os.path.exists(path):
            refuse(f"`{path}` exists and would be replaced by the remaining lines", "remove it (an earlier job may have written it), or name another folder in `dataset.data`")
    return copies


def copy(lines, path):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with (gzip.open if path.endswith(".gz") else open)(f"{path}.part", "wt", encoding="utf-8", newline="") as file:
        file.writelines(f"{row.value}\n" for row in lines.toLocalIterator())
    os.replace(f"{path}.part", path)


def refuse(problem, remedy="use `mp4sr preprocess` on all lines instead"):
    sys.exit(f"{problem}; {remedy}")


def setting(pipeline, key):
    *sections, name = key.split(".")
    for section in sections:
        pipeline = pipeline.get(section, {})
    return pipeline.get(name, SUPPORTED[key][0])


def parsed(spark, path, pipeline):
    """Returns a column with the user, item and time of a line, or with the reason why the line or the whole file is refused."""
    source = pipeline["source"]
    columns = {"user": "user_id", "item": "item_id", "time": "timestamp"} | source.get("columns", {})
    format = setting(pipeline, "source.format")
    user, items, time, unit = FIELDS.get(format, (columns["user"], (columns["item"],), columns["time"], ""))
    unit = setting(pipeline, "source.time") or unit
    text = spark.read.text(path, lineSep="\n")
    first = text.where("trim(value) != ''").first() or refuse(f"`{path}` has no lines", "name another file in `source.interactions`")
    header = first[0].rstrip("\r")
    name = path.lower().removesuffix(".gz")
    if name.endswith((".parquet", ".pq")) or header.startswith("PAR1"):
        refuse(f"`{path}` is a Parquet file, which is not supported here")
    if "\0" in header or "\ufffd" in header:
        refuse(f"`{path}` is neither UTF-8 text nor a gzip file named `.gz`")
    is_table = name.endswith((".csv", ".tsv", ".tab", ".inter")) or format == "recbole"
    if name.endswith((".json", ".jsonl", ".ndjson")) or not is_table and (format in FIELDS or header.lstrip().startswith(("{", "["))):
        if header.lstrip().startswith("[") or header.strip() == "{":
            refuse(f"`{path}` does not have one JSON object per line")
        fields = ", ".join(f"`{name}` string" for name in (user, *items, time))
        found = F.from_json("value", f"{fields}, problem string", {"columnNameOfCorruptRecord": "problem"})
        problem = F.when(found.isNull(), F.lit("not JSON")).otherwise(found["problem"])
        user, item, time = id_of(found[user]), F.coalesce(*(id_of(found[name]) for name in items)), found[time]
        refused = F.when(F.col("value").rlike(r"^\s*\{\s*u?'"), F.lit(f"`{path}` has Python dictionaries, which are not supported here"))
    else:
        if not text.first()[0].strip():
            refuse(f"`{path}` has a blank line where its header belongs", "correct the header")
        separator, named = header_of(header, path, source, (user, items[0], time))
        found = F.split(F.regexp_replace("value", "\r$", ""), f"\\Q{separator}\\E", -1)
        user, item, time = (found[named.index(name)] for name in (user, items[0], time))
        user, item = id_of(user), id_of(item)
        problem = F.when(F.col("value") == first[0], F.lit("header")).when(F.size(found) != len(named), F.lit("other columns"))
        quoted = F.col("value").contains('"') if len(separator) == 1 else F.lit(False)
        refused = F.when(quoted, F.lit(f"`{path}` has quotation marks, which are not supported here"))
        # `mp4sr preprocess` reads a decimal comma if semicolons separate the columns.
        time = F.regexp_replace(time, ",", ".") if separator == ";" else time
    problem = F.when(~F.is_valid_utf8("value"), F.lit("not UTF-8")).otherwise(problem)
    # Lists, tuples and arrays of NumPy, as Python writes them.
    lists = F.when(F.ltrim(item).rlike(r"""^\[|^\(\s*['"]|\(\["""), F.lit(f"`{path}` has lists of items, which are not supported here"))
    refused = F.coalesce(refused, lists)
    if not unit:
        sample = text.select(F.when(problem.isNull(), time)).take(SAMPLED + 1)
        unit = unit_of([row[0] for row in sample if row[0] and row[0].strip()], path)
    digits = DIGITS[unit]
    number = time.cast("decimal(38, 9)")
    least = EARLIEST * 10**digits if digits else 0
    is_time = (number >= least) & (F.floor(number) <= LATEST * 10**digits)
    # Files may have different units, so times are compared in nanoseconds.
    time = F.when(is_time, F.floor(number.cast("decimal(29, 9)") * decimal.Decimal(10 ** (9 - digits))))
    return F.struct(user.alias("user"), item.alias("item"), time.alias("time"), problem.alias("problem"), refused.alias("refused"))


def id_of(value):
    """Returns an id without the blanks around it; null if it marks a missing value."""
    text = F.regexp_replace(value, BLANKS_AROUND, "")
    return F.when(~F.lower(text).isin(MARKS) & ~text.isin(EXACT), text)


def header_of(header, path, source, wanted):
    """Returns the separator and the names of the columns, as `mp4sr preprocess` recognises them."""
    name = path.lower().removesuffix(".gz")
    separators = [{"\\t": "\t", "tab": "\t"}.get(source["separator"], source["separator"])] if source.get("separator") else \
        [","] * name.endswith(".csv") + ["\t", ",", ";", "::", "|", " "]
    for separator in separators:
        named = [column.strip() for column in header.split(separator)]
        if source.get("format") == "recbole" or name.endswith(".inter"):
            named = [column.rpartition(":")[0] if column.endswith((":token", ":token_seq", ":float", ":float_seq")) else column
                     for column in named]
        if all(named.count(column) == 1 for column in wanted):
            return separator, named
    refuse(f"the first line of `{path}`, `{header[:80]}`, does not name each of the columns {', '.join(wanted)} once",
           "correct `source.columns` or `source.separator`")


def unit_of(times, path):
    """Returns the unit that most of the first times have, as `mp4sr preprocess` recognises it."""
    # Zero is a missing time, and a negative number is not a time.
    times = [time for time in times if (number := number_of(time)) is None or number > 0]
    numbers = [number_of(time) for time in times]
    if numbers and (numbers.count(None) * 2 > len(numbers) or sum(map(is_day, times)) * 2 > len(times)):
        refuse(f"the times of `{path}`, such as `{times[0]}`, are not Unix times; other notations are not supported here")
    votes = collections.Counter(next((unit for unit, digits in DIGITS.items() if number <= LATEST * 10**digits), "s")
                                for number in numbers if number is not None)
    unit = max(votes, key=votes.get, default="s")
    dates = sum(number is None and any(map(str.isdigit, time)) for time, number in zip(times, numbers))
    strays = sum(votes.values()) - votes[unit] + dates
    if strays > 1 and strays * 100 > len(times) * STRAYS:
        refuse(f"`{path}` has times in more than one notation", "convert them to Unix times in one unit")
    return unit


def number_of(text):
    try:
        number = decimal.Decimal(text.strip())
    except decimal.InvalidOperation:
        return None
    return number if number.is_finite() else None


def is_day(text):
    """Returns whether a text is a date of digits without separators."""
    pattern = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(text.strip()))
    try:
        return pattern is not None and datetime.datetime.strptime(text.strip(), pattern).year >= 1970
    except ValueError:
        return False


def sizes(events):
    row = events.agg(F.count("*").alias("events"), F.countDistinct("user").alias("users"), F.countDistinct("item").alias("items")).first()
    return row.asDict()


if __name__ == "__main__":
    main()
