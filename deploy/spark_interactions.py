"""Reduces interactions that are too many for one machine to those that the dataset can have, with Spark (docs/scale.md).

    spark-submit deploy/spark_interactions.py --pipeline shop.toml --data hdfs:///shop/raw --out hdfs:///shop/reduced

It reads the files of `source.interactions`, applies the pipeline's `preprocess.repeated`, `user_core` and `item_core`, and writes the
remaining lines of each file, unchanged and in order, to the folder `OUT/<file>`. It prints counts on standard output. The remaining lines
are those of the events that are kept, and the first line of every user and item that is kept, because it determines their numbers. From
these lines, `mp4sr preprocess` with the same pipeline makes the same dataset as from all lines.

The files must be JSON lines, or delimited text with a header and without quotation marks, in UTF-8, with or without gzip (`.gz`). Times
must be numbers.
"""
import argparse, json, sys, tomllib
from pyspark import StorageLevel
from pyspark.sql import SparkSession, Window, functions as F

FIELDS = {"amazon-2014": ("reviewerID", "asin", "unixReviewTime"), "amazon-2018": ("reviewerID", "asin", "unixReviewTime"),
          "amazon-2023": ("user_id", "parent_asin", "timestamp")}
PRESETS = {"strict-5core": (5, 5), "released": (5, 0), "table1": (5, 0)}
REFUSED = {"where": "", "since": "", "until": "", "recent": 0, "items_without_events": "drop"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for flag in ("--pipeline", "--data", "--out"):
        parser.add_argument(flag, required=True)
    args = parser.parse_args()
    with open(args.pipeline, "rb") as file:
        pipeline = tomllib.load(file)
    source, settings = pipeline["source"], pipeline.get("preprocess", {})
    for key, usual in REFUSED.items():
        if settings.get(key, usual) != usual:
            sys.exit(f"`preprocess.{key}` is not applied here, and what follows depends on it; leave it out, or use `mp4sr preprocess` alone")
    columns = {"user": "user_id", "item": "item_id", "time": "timestamp"} | source.get("columns", {})
    names = FIELDS.get(source.get("format", "amazon-2018"), (columns["user"], columns["item"], columns["time"]))
    user_core, item_core = PRESETS[settings.get("preset", "strict-5core")]
    bounds = {"user": settings.get("user_core", user_core), "item": settings.get("item_core", item_core)}
    spark = SparkSession.builder.appName("mp4sr interactions").getOrCreate()
    # By default, Spark 4 fails on a time that is not a number. With this setting, the time is null and the line is rejected.
    spark.conf.set("spark.sql.ansi.enabled", "false")

    # Identifies a line by the number of its file, the start of its block and its position there, which also orders all lines.
    position = F.struct(F.col("file"), F.col("_metadata.file_block_start").alias("block"), F.monotonically_increasing_id().alias("row"))
    read = [spark.read.text(f"{args.data}/{name}", lineSep="\n").withColumn("file", F.lit(number)).select("file", position.alias("at"), "value",
            parsed(spark, f"{args.data}/{name}", source, names).alias("event")) for number, name in enumerate(source["interactions"])]
    lines = read[0]
    for further in read[1:]:
        lines = lines.unionAll(further)
    lines = lines.where("trim(value) != ''").persist(StorageLevel.DISK_ONLY)
    sound = "event.problem is null and length(trim(event.user)) > 0 and length(trim(event.item)) > 0 and event.time is not null"
    accepted = lines.where(sound).select("at", F.trim("event.user").alias("user"), F.trim("event.item").alias("item"), "event.time")
    accepted = accepted.persist(StorageLevel.DISK_ONLY)
    is_header = F.col("event.problem") == "header"
    counts = {"lines": lines.where(~F.coalesce(is_header, F.lit(False))).count(), "raw": sizes(accepted)}
    counts["rejected"] = counts["lines"] - counts["raw"]["events"]

    events = accepted
    repeated = settings.get("repeated", "last")
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
    kept = lines.join(kept.distinct(), "at", "left_semi").select(lines.columns).unionAll(lines.where(is_header))
    for number, name in enumerate(source["interactions"]):
        of_file = kept.where(F.col("file") == number).orderBy("at").select("value")
        of_file.write.text(f"{args.out}/{name}", compression="gzip" if name.endswith(".gz") else "none", lineSep="\n")
    print(json.dumps(counts))


def parsed(spark, path, source, names):
    """The user, item and time of a line, or the reason why it has none."""
    if ".json" in path or source.get("format", "amazon-2018") in FIELDS:
        fields = ", ".join(f"`{name}` string" for name in names)
        found = F.from_json("value", f"{fields}, problem string", {"columnNameOfCorruptRecord": "problem"})
        user, item, time = (found[name] for name in names)
        problem = F.when(found.isNull(), F.lit("not JSON")).otherwise(found["problem"])
    else:
        header = spark.read.text(path, lineSep="\n").first()[0]
        separator = source.get("separator") or max("\t,;|", key=header.count)
        named = [name.split(":")[0].strip() for name in header.rstrip("\r").split(separator)]
        found = F.split(F.regexp_replace("value", "\r$", ""), f"\\Q{separator}\\E")
        user, item, time = (found[named.index(name)] for name in names)
        problem = F.when(F.col("value") == header, F.lit("header")).when(F.size(found) != len(named), F.lit("other columns"))
    return F.struct(user.alias("user"), item.alias("item"), time.cast("decimal(38, 9)").alias("time"),
                    problem.alias("problem"))


def sizes(events):
    row = events.agg(F.count("*").alias("events"), F.countDistinct("user").alias("users"), F.countDistinct("item").alias("items")).first()
    return row.asDict()


main()
