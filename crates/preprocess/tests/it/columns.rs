//! Tests conditions on columns and windows of time, with every form of file.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float16Array, Float32Array,
    Float64Array, Int8Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, TimestampMicrosecondArray,
    TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt8Array, UInt32Array, UInt64Array,
};
use half::f16;
use mp4sr_tests::Project;
use parquet::arrow::ArrowWriter;

use crate::harness::{dataset_of, shop_of};

const ALL: &str = "[preprocess]\nuser_core = 0\nitem_core = 0\nrepeated = \"all\"\n";

fn table(file: &str) -> Project {
    shop_of(&format!("[source]\nformat = \"tabular\"\ninteractions = [\"{file}\"]\n{ALL}"))
}

/// The items that are left, and what was dropped for which reason.
fn left(project: &Project, set: &[&str]) -> (Vec<String>, BTreeMap<String, u64>) {
    let arguments: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    project.run_stderr("preprocess", &arguments);
    let made = dataset_of(project);
    let items = made.sequences.items.iter().map(|&item| made.items.ids[item as usize - 1].clone()).collect();
    (items, made.report.events.dropped)
}

fn refused(project: &Project, set: &[&str]) -> String {
    project.run_failing("preprocess", &set.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>())
}

const TSV: &str = "user_id\titem_id\ttimestamp\trating\tverified\tshop\n\
                   u\ta\t1\t5\ttrue\teast\nu\tb\t2\t3.5\ttrue\twest\nu\tc\t3\t4\tfalse\teast\nu\td\t4\t\ttrue\teast\n\
                   u\te\t5\t4.5\tTrue\t\n";

#[test]
fn a_condition_keeps_events_that_satisfy_it_and_counts_missing_values_separately() {
    let project = table("e.tsv");
    project.write_raw("e.tsv", TSV);
    let (items, dropped) = left(&project, &["preprocess.where=rating >= 4 AND verified"]);
    assert_eq!(items, ["a", "e"]);
    assert_eq!(dropped["condition not satisfied"], 2);
    assert_eq!(dropped["condition on a missing value"], 1);
    let step = &dataset_of(&project).report.filters[1];
    assert_eq!((step.filter.as_str(), step.events), ("where rating >= 4 AND verified", 2));
    for (condition, expected) in [
        ("shop = 'east'", &["a", "c", "d"][..]),
        ("shop IN ('west') OR rating > 4", &["a", "b", "e"]),
        ("rating IS NULL", &["d"]),
        ("rating BETWEEN 3 AND 4", &["b", "c"]),
        ("item_id <> 'a' AND timestamp < 4", &["b", "c"]),
        ("shop LIKE 'ea%' AND NOT verified", &["c"]),
        ("COALESCE(rating, 0) < 4", &["b", "d"]),
        ("UPPER(shop) = 'WEST'", &["b"]),
        ("CASE WHEN verified THEN rating ELSE 0 END >= 4", &["a", "e"]),
        ("rating = MAX(rating)", &["a"]),
        ("MAX(rating) = 5", &["a", "b", "c", "d", "e"]),
        ("COUNT(*) OVER (PARTITION BY shop) > 1", &["a", "c", "d"]),
    ] {
        assert_eq!(left(&project, &[&format!("preprocess.where={condition}")]).0, expected, "{condition}");
    }
}

#[test]
fn json_lines_and_parquet_files_give_the_same_result_as_tables() {
    let json = table("e.jsonl");
    json.write_raw(
        "e.jsonl",
        "{\"user_id\": \"u\", \"item_id\": \"a\", \"timestamp\": 1, \"rating\": 5, \"verified\": true}\n\
         {\"user_id\": \"u\", \"item_id\": \"b\", \"timestamp\": 2, \"rating\": 3.5, \"verified\": true}\n\
         {\"user_id\": \"u\", \"item_id\": \"c\", \"timestamp\": 3, \"rating\": 4, \"verified\": false}\n\
         {\"user_id\": \"u\", \"item_id\": \"d\", \"timestamp\": 4, \"rating\": null, \"verified\": true}\n\
         {\"user_id\": \"u\", \"item_id\": \"e\", \"timestamp\": 5, \"rating\": \"4.5\", \"verified\": true}\n",
    );
    let parquet = table("e.parquet");
    let columns: [(&str, ArrayRef); 5] = [
        ("user_id", Arc::new(StringArray::from(vec!["u"; 5]))),
        ("item_id", Arc::new(StringArray::from(vec!["a", "b", "c", "d", "e"]))),
        ("timestamp", Arc::new(Int64Array::from(vec![1, 2, 3, 4, 5]))),
        ("rating", Arc::new(Float64Array::from(vec![Some(5.0), Some(3.5), Some(4.0), None, Some(4.5)]))),
        ("verified", Arc::new(BooleanArray::from(vec![true, true, false, true, true]))),
    ];
    write_parquet(&parquet, "e.parquet", columns);
    for project in [json, parquet] {
        let (items, dropped) = left(&project, &["preprocess.where=rating >= 4 AND verified"]);
        assert_eq!(items, ["a", "e"]);
        assert_eq!((dropped["condition not satisfied"], dropped["condition on a missing value"]), (2, 1));
    }
}

#[test]
fn dates_in_a_condition_are_converted_without_a_message() {
    let project = table("e.tsv");
    let day = |at: usize| format!("u{}\ti{}\t{at}\t2020-01-0{}\n", at % 2, at % 3, at + 1);
    let days: String = (0..9).map(day).collect();
    project.write_raw("e.tsv", format!("user_id\titem_id\ttimestamp\tday\n{days}"));
    let condition = "preprocess.where=CAST(day AS DATE) >= DATE '2020-01-03'";
    let printed = project.run_stderr("preprocess", &["--set", condition]);
    assert!(!printed.to_lowercase().contains("deprecat"), "{printed}");
    assert_eq!(dataset_of(&project).report.filters[1].events, 7);
}

#[test]
fn errors_in_a_condition_are_reported_with_their_position() {
    let project = table("e.tsv");
    project.write_raw("e.tsv", TSV);
    for (condition, expected) in [
        ("ratng >= 4", "names `ratng` at character 1, but `"),
        ("verified AND ratng >= 4", "names `ratng` at character 14"),
        ("ratng >= 4", "did you mean `rating`?"),
        (
            "shop >= 4",
            "compares `shop`, which is text, with a whole number at character 1; `shop` is text because of `east` in line 2",
        ),
        ("rating >= 'four'", "compares `rating`, which is a number, with text at character 1"),
        ("rating", "is a number and not a condition"),
        (
            "rating >=",
            "is not an SQL expression: expected an expression, but the condition ends there, at character 10",
        ),
        ("verified AND shop SIMILAR TO 'a'", "at character 14: `shop SIMILAR TO 'a'` is not supported"),
        ("Rating > 3", "did you mean `rating`?"),
        (
            "shop > DATE '2020-01-01'",
            "if the texts are dates such as 2018-09-30, convert them, as in `CAST(shop AS DATE)`",
        ),
        ("rating > 5e-1", "at character 10: `5e-1` is not a number of 64 bits that is written with digits and a point"),
        (
            "AVG(rating) OVER (PARTITION BY shop ORDER BY timestamp) > 3",
            "which is not supported; the functions that can be",
        ),
        ("COUNT(DISTINCT shop) OVER (ORDER BY timestamp) > 1", "and COUNT without DISTINCT"),
        ("rating ^ 2 > 9", "at character 1: `rating ^ 2` is not supported"),
        ("rating DIV 2 > 1", "is not an SQL expression: `DIV` at character 8 is not an operator"),
        ("shop COLLATE de = 'east'", "at character 1: `shop COLLATE de` is not supported"),
        ("SUM(shop) > 3", "`sum` operation not supported for dtype `str`; `shop` is text because of `east` in line 2"),
        ("shop + 1 > 3", "try an explicit cast first; `shop` is text because of `east` in line 2"),
        ("timestamp * 9223372036854775807 > 3", "2 * 9223372036854775807 needs more than 64 bits"),
        ("rating >= 4)", "has `)` at character 12 where the condition should end"),
        ("1 = 1", "names no column"),
        ("rating IN (SELECT 1)", "has a subquery"),
        ("user >= 4", "has `user`, which is a word of SQL; put a column of this name into double quotes"),
        (
            "ROUND(rating) > 3",
            "has `ROUND(rating)`, which is not supported; halves would be rounded to the even number",
        ),
        ("\"round\"(rating) > 3", "which is not supported; halves would be rounded"),
        ("verified AND LOG(rating, 2) > 1", "has `LOG(rating, 2)`, which is not supported; dialects differ"),
        ("verified IS NOT TRUE", "has `verified IS NOT TRUE`, which is not supported; use `COALESCE`"),
        ("verified AND frobnicate(rating)", "cannot be evaluated at character 14: unsupported function 'frobnicate'"),
        ("verified AND rating LIKE '4%'", "compares `rating`, which is a number, with a pattern at character 14"),
        ("shop = 'east' OR CAST(shop AS FOO) = 1", "cannot be evaluated at character 23: datatype \"FOO\""),
        (
            "verified AND CAST(shop AS INT) > 3",
            "cannot be evaluated at character 19: conversion from `str` to `i32` failed",
        ),
        ("verified AND LENGTH(rating) > 3", "cannot be evaluated at character 14: "),
        ("verified AND rating + shop > 3", "cannot be evaluated at character 14: arithmetic"),
        ("rating > 3 AND rating > 'x'", "compares `rating`, which is a number, with text at character 16"),
        (
            "rating > 3 AND UPPER(shop) = 4",
            "compares text with a whole number at character 16; `shop` is text because of",
        ),
        ("rating > 3 AND rating IN ('4', 'a')", "compares `rating`, which is a number, with text at character 16"),
        ("rating > 3 AND rating BETWEEN 1 AND 'b'", "compares `rating`, which is a number, with text at character 16"),
        ("verified AND NOT rating", "has `rating`, which is a number, where a condition belongs at character 18"),
        ("rating AND verified", "has `rating`, which is a number, where a condition belongs at character 1;"),
        ("CASE WHEN rating THEN verified END", "where a condition belongs at character 11"),
        (
            "shop REGEXP '('",
            "cannot be evaluated at character 1: regex error: regex parse error: error: unclosed group",
        ),
    ] {
        let error = refused(&project, &[&format!("preprocess.where={condition}")]);
        assert!(error.contains(expected) && error.contains("`preprocess.where` ="), "{condition}: {error}");
        assert_eq!(error.trim().lines().count(), 1, "{error}");
    }
    assert_eq!(left(&project, &["preprocess.where=NOT COALESCE(rating > 4, FALSE)"]).0, ["b", "c", "d"]);
    let joined = |count: usize| format!("preprocess.where={}", vec!["rating = 5"; count].join(" OR "));
    assert_eq!(left(&project, &[&joined(51)]).0, ["a"]);
    let error = refused(&project, &[&joined(400)]);
    assert!(error.contains("joins 400 parts by AND, OR or arithmetic") && error.contains("IN ("), "{error}");
    let sum = format!("preprocess.where=rating{} > 1", " + 0".repeat(200));
    assert!(refused(&project, &[&sum]).contains("joins 201 parts by AND, OR or arithmetic"));
    let error = refused(&project, &["preprocess.where=rating > 9"]);
    assert!(error.contains("the filter `where rating > 9` dropped the last 5 events; change the condition"), "{error}");
}

#[test]
fn numbers_do_not_wrap_and_values_that_are_not_numbers_are_missing() {
    let project = table("e.csv");
    let lines = "u,a,1,abcd,3,4\nu,b,2,a,0,0\nu,c,3,abcdef,1,4\n";
    project.write_raw("e.csv", format!("user_id,item_id,timestamp,review,helpful,votes\n{lines}"));
    for (condition, expected) in [
        ("LENGTH(review) - 3 > 0", &["a", "c"][..]),
        ("LENGTH(review) - LENGTH(item_id) * 2 >= 0", &["a", "c"]),
        ("COUNT(*) OVER (PARTITION BY user_id) - 4 < 0", &["a", "b", "c"]),
        ("helpful / votes >= 0.5", &["a"]),
        ("(helpful + 1) / votes >= 0.5", &["a", "c"]),
        ("(helpful + 1) / votes IS NULL", &["b"]),
        ("SQRT(helpful - 1) >= 0", &["a", "c"]),
        ("COALESCE(helpful / votes, 0) < 0.1", &["b"]),
        ("helpful / votes IS NULL", &["b"]),
        ("LN(helpful + 1) > 1 AND LN(votes) < 3", &["a"]),
        ("LOG10(votes) IS NULL OR LOG2(helpful) = 0", &["b", "c"]),
        ("COALESCE(LN(timestamp), 0) > 1", &["c"]),
        ("CAST('nan' AS DOUBLE) > helpful OR helpful = 3", &["a"]),
        ("(0 - helpful) % 2 = -1", &["a", "c"]),
        ("votes % helpful = 1", &["a"]),
        // Fractions, whose remainder has the sign of the dividend, too: -1.5, 0.5, -0.5 and the like.
        ("(0 - helpful) * 0.5 % 1 = -0.5", &["a", "c"]),
        ("MOD(0.5 - helpful, 2) < 0", &["a", "c"]),
        ("(helpful - 0.5) % -2 = 0.5", &["a", "c"]),
        ("0.5 % (helpful * 0.0) IS NULL", &["a", "b", "c"]),
        ("votes % helpful IS NULL", &["b"]),
        ("helpful IN (3, 0.5)", &["a"]),
        ("POWER(votes, 32) > 1", &["a", "c"]),
        ("AVG(helpful / votes) BETWEEN 0.4 AND 0.6", &["a", "b", "c"]),
    ] {
        assert_eq!(left(&project, &[&format!("preprocess.where={condition}")]).0, expected, "{condition}");
    }
    let dropped = left(&project, &["preprocess.where=helpful / votes >= 0.5"]).1;
    assert_eq!((dropped["condition not satisfied"], dropped["condition on a missing value"]), (1, 1));
    let narrow = table("e.parquet");
    let columns: [(&str, ArrayRef); 4] = [
        ("user_id", Arc::new(StringArray::from(vec!["u"; 3]))),
        ("item_id", Arc::new(StringArray::from(vec!["a", "b", "c"]))),
        ("timestamp", Arc::new(Int64Array::from(vec![1, 2, 3]))),
        ("rating", Arc::new(UInt8Array::from(vec![2, 3, 5]))),
    ];
    write_parquet(&narrow, "e.parquet", columns);
    assert_eq!(left(&narrow, &["preprocess.where=rating - 3 > 0"]).0, ["c"]);
    assert_eq!(left(&narrow, &["preprocess.where=rating * 100 >= 300"]).0, ["b", "c"]);
}

/// Conditions for which polars would compute something else than SQL are computed like SQL, or refused.
#[test]
fn windows_and_positions_are_those_of_sql_or_refused() {
    let project = table("e.jsonl");
    let line = |user: &str, item: &str, at: i32, rest: &str| {
        format!("{{\"user_id\": \"{user}\", \"item_id\": \"{item}\", \"timestamp\": {at}{rest}}}\n")
    };
    let lines = [
        line("u", "a", 1, ", \"price\": 2.5, \"title\": \"日本語 x\""),
        line("u", "b", 2, ", \"price\": 1.0"),
        line("v", "c", 3, ", \"price\": 4.5, \"title\": \"yx\""),
        line("v", "d", 4, ", \"price\": 5.5, \"title\": \"é\""),
    ];
    project.write_raw("e.jsonl", lines.concat());
    for (condition, expected) in [
        ("STRPOS(title, 'x') = 5", &["a"][..]),
        ("POSITION('x' IN title) = 2", &["c"]),
        ("STRPOS(title, '語') = LENGTH('日本語')", &["a"]),
        ("STRPOS(title, 'q') = 0", &["a", "c", "d"]),
        ("STRPOS(title, 'x') IS NULL", &["b"]),
        ("LAST_VALUE(price) OVER (PARTITION BY user_id ORDER BY timestamp) = price", &["a", "b", "c", "d"]),
        ("FIRST_VALUE(item_id) OVER (PARTITION BY user_id ORDER BY timestamp DESC) = item_id", &["b", "d"]),
        ("ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY title NULLS FIRST) = 1", &["b", "c"]),
        ("ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY title DESC NULLS LAST) = 2", &["b", "c"]),
        ("ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY title NULLS LAST) = 2", &["b", "d"]),
        ("ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY title DESC) = 2", &["b", "c"]),
        ("ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY title DESC NULLS FIRST) = 2", &["a", "c"]),
        ("ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY title DESC, price DESC NULLS LAST) = 2", &["b", "c"]),
        ("ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY title, price NULLS FIRST) = 1", &["b", "c"]),
        ("FIRST_VALUE(item_id) OVER (ORDER BY LENGTH(title) DESC NULLS LAST) = 'a' AND item_id = 'b'", &["b"]),
        ("LAG(item_id) OVER (ORDER BY LENGTH(title) NULLS LAST) = 'd'", &["c"]),
        // Equal rows keep the order of the file.
        ("ROW_NUMBER() OVER (ORDER BY LENGTH(user_id) DESC NULLS LAST) = 4", &["d"]),
        ("MEDIAN(price) OVER (PARTITION BY user_id) > 2", &["c", "d"]),
        ("CORR(price, timestamp) > 0.8", &["a", "b", "c", "d"]),
    ] {
        assert_eq!(left(&project, &[&format!("preprocess.where={condition}")]).0, expected, "{condition}");
    }
    for (condition, expected) in [
        ("CORR(price, timestamp) OVER (PARTITION BY user_id) > 0", "CORR can only be computed over all events"),
        ("COVAR_POP(price, timestamp) OVER (PARTITION BY user_id) > 0", "can only be computed over all events"),
        ("QUANTILE_DISC(price, 0.5) OVER (PARTITION BY user_id) > 0", "can only be computed over all events"),
        ("LAST_VALUE(price) OVER (PARTITION BY user_id) = price", "use FIRST_VALUE with the opposite order"),
        (
            "LAST_VALUE(price) OVER (PARTITION BY user_id ORDER BY timestamp ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) = price",
            "use FIRST_VALUE with the opposite order",
        ),
        ("LEFT(title, 0) = ''", "no character is left"),
        ("STDDEV_POP(price) OVER (PARTITION BY user_id) > 1", "unsupported function 'stddev_pop'"),
        ("ROW_NUMBER() OVER (ORDER BY title, price NULLS LAST) = 1", "as in `COALESCE(price, 0)`"),
        ("ROW_NUMBER() OVER (ORDER BY title DESC NULLS FIRST, price DESC) = 1", "as in `COALESCE(title, 0)`"),
    ] {
        let error = refused(&project, &[&format!("preprocess.where={condition}")]);
        assert!(error.contains(expected) && error.contains("supported"), "{condition}: {error}");
    }
}

#[test]
fn a_column_without_a_value_satisfies_nothing_and_may_be_missing() {
    let project = table("e.csv");
    project.write_raw("e.csv", "user_id,item_id,timestamp,rating\nu,a,1,\nu,b,2,\n");
    let error = refused(&project, &["preprocess.where=rating >= 4"]);
    assert!(error.contains("the filter `where rating >= 4` dropped the last 2 events"), "{error}");
    assert_eq!(left(&project, &["preprocess.where=rating IS NULL OR rating = 'x'"]).0, ["a", "b"]);
}

#[test]
fn a_field_that_no_line_of_json_has_is_reported() {
    let project = table("e.jsonl");
    project.write_raw("e.jsonl", "{\"user_id\": \"u\", \"item_id\": \"a\", \"timestamp\": 1, \"rating\": 5}\n");
    let error = refused(&project, &["preprocess.where=ratings > 1"]);
    assert!(error.contains("names `ratings` at character 1") && error.contains("did you mean `rating`?"), "{error}");
}

#[test]
fn a_window_of_time_is_reported_and_counted() {
    let project = table("e.tsv");
    let rows = [("a", "1514764799"), ("b", "1514764800"), ("c", "1546300799"), ("d", "1546300800")];
    let lines = rows.map(|(item, time)| format!("u\t{item}\t{time}\n")).concat();
    project.write_raw("e.tsv", format!("user_id\titem_id\ttimestamp\n{lines}"));
    let window = ["preprocess.since=2018-01-01", "preprocess.until=2019-01-01"];
    let (items, dropped) = left(&project, &window);
    assert_eq!((items, dropped["outside of the time window"]), (vec!["b".to_owned(), "c".to_owned()], 2));
    let reported = project.run_stderr("preprocess", &["--set", "preprocess.since=2018-01-01 00:00:01"]);
    assert!(reported.contains("events from 2018-01-01T00:00:01Z on"), "{reported}");
    assert!(refused(&project, &["preprocess.since=soon"]).contains("is not a time"));
    assert!(refused(&project, &["preprocess.since=2030-01-01"]).contains("change `preprocess.since`"));
    project.write_raw("e.tsv", "user_id\titem_id\ttimestamp\nu\ta\t20180930\nu\tb\t20181001\n");
    assert_eq!(left(&project, &["preprocess.since=2018-10-01"]).0, ["b"]);
    // A day written like this is not a number of seconds.
    let error = refused(&project, &["preprocess.since=20181001"]);
    assert!(error.contains("the times of the interactions are dates") && error.contains("give a date"), "{error}");
}

fn write_parquet<const N: usize>(project: &Project, name: &str, columns: [(&str, ArrayRef); N]) {
    let columns = columns.into_iter().map(|(name, column)| (name, column, true));
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    project.write_raw(name, bytes);
}

#[test]
fn a_condition_on_parquet_has_the_same_meaning_under_every_memory_limit() {
    let project = table("e.parquet");
    // One batch of rows is beyond the limit, so nothing is left to write after the last one.
    let texts = |text: &dyn Fn(i64) -> String| -> ArrayRef {
        Arc::new((0..6000).map(|n| Some(text(n))).collect::<StringArray>())
    };
    let columns = [
        ("user_id", texts(&|n| format!("u{}", n % 200))),
        ("item_id", texts(&|n| format!("i{}", n * 7 % 50))),
        ("timestamp", Arc::new((0..6000).map(|n| Some(1_500_000_000 + n)).collect::<Int64Array>()) as ArrayRef),
        ("rating", Arc::new((0..6000).map(|n| Some(n % 5 + 1)).collect::<Int64Array>()) as ArrayRef),
        // Blank text is a missing value, as in other files.
        ("verified", texts(&|n| if n % 2 == 0 { " ".to_owned() } else { "yes".to_owned() })),
    ];
    write_parquet(&project, "e.parquet", columns);
    let kept = |keys: &[&str]| {
        let keys: Vec<&str> = keys.iter().flat_map(|key| ["--set", key]).collect();
        let _ = std::fs::remove_dir_all(project.path("shop/dataset"));
        project.run_stderr("preprocess", &keys);
        let dataset = dataset_of(&project);
        (dataset.report.filters[1].events, dataset.sequences)
    };
    let condition = "preprocess.where=rating >= 3 AND verified IS NOT NULL";
    let (in_memory, on_disk) = (kept(&[condition]), kept(&[condition, "preprocess.memory=1MiB"]));
    assert_eq!(in_memory.0, 1800);
    assert_eq!(in_memory, on_disk);
}

#[test]
fn parquet_columns_have_the_types_in_which_conditions_compute() {
    let project = table("e.parquet");
    let noon = |day: i64| (1_577_880_000 + (day - 1) * 86_400) * 1000;
    let noons = || TimestampMillisecondArray::from((1..5).map(noon).collect::<Vec<_>>());
    let texts = [Some("b"), Some("a"), None, Some(" ")];
    let (half, none) = (1_i64 << 62, Int64Array::from(vec![None; 4]));
    let fractions = || vec![Some(4.1_f32), Some(4.2), Some(f32::INFINITY), None];
    let columns: [(&str, ArrayRef); 15] = [
        ("user_id", Arc::new(StringArray::from(vec!["u"; 4]))),
        ("item_id", Arc::new(StringArray::from(vec!["a", "b", "c", "d"]))),
        ("timestamp", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
        ("narrow", Arc::new(Int8Array::from(vec![Some(1), Some(2), Some(100), None]))),
        ("huge", Arc::new(Int64Array::from(vec![Some(half), Some(half), Some(-1), None]))),
        ("missing", Arc::new(none)),
        ("fraction", Arc::new(Float32Array::from(fractions()))),
        ("half", Arc::new(fractions().into_iter().map(|value| value.map(f16::from_f32)).collect::<Float16Array>())),
        ("wide", Arc::new(UInt64Array::from(vec![1, 2, 3, u64::MAX]))),
        ("shop", Arc::new(DictionaryArray::<Int32Type>::from_iter(texts))),
        ("code", Arc::new(BinaryArray::from(vec![b"x".as_slice(), b"y", b"", b"z"]))),
        ("bytes", Arc::new(BinaryArray::from(vec![b"x".as_slice(), b"\xff", b"", b"z"]))),
        ("day", Arc::new(Date32Array::from(vec![18_262, 18_263, 18_264, 18_265]))),
        ("at", Arc::new(noons())),
        ("at_utc", Arc::new(noons().with_timezone("UTC"))),
    ];
    write_parquet(&project, "e.parquet", columns);
    for (condition, expected) in [
        ("POWER(narrow, 2) > 200", &["c"][..]),
        ("SUM(narrow) OVER (PARTITION BY user_id) = 103", &["a", "b", "c", "d"]),
        ("fraction IN (4.1, 7)", &["a"]),
        ("fraction NOT IN (4.1, 7)", &["b"]),
        ("fraction = 4.1 OR fraction > 5", &["a"]),
        ("half BETWEEN 4.1 AND 4.11 OR half > 5", &["a"]),
        ("SUM(-narrow) = -103", &["a", "b", "c", "d"]),
        ("SUM(narrow) OVER (PARTITION BY missing) = 103", &["a", "b", "c", "d"]),
        ("SUM(narrow) OVER (ORDER BY timestamp) = 3", &["b"]),
        ("SUM(huge - 1) OVER (PARTITION BY user_id ORDER BY timestamp) > 9223372036854775804", &["b"]),
        ("SUM(huge - 1) = 9223372036854775804", &["a", "b", "c", "d"]),
        ("SUM(missing) IS NULL", &["a", "b", "c", "d"]),
        ("ABS(narrow - 101) >= 99", &["a", "b"]),
        ("wide > 2", &["c", "d"]),
        ("shop < 'b'", &["b"]),
        ("COALESCE(shop, 'none') = 'none'", &["c", "d"]),
        ("shop LIKE 'a%' OR GREATEST(shop, 'a') = 'b'", &["a", "b"]),
        ("code = 'x' OR code IS NULL", &["a", "c"]),
        ("day >= DATE '2020-01-03' AND at > DATE '2020-01-02'", &["c", "d"]),
        ("at_utc < TIMESTAMP '2020-01-02 13:00:00' AND at = at_utc", &["a", "b"]),
    ] {
        let condition = format!("preprocess.where={condition}");
        assert_eq!(left(&project, &[&condition]).0, expected, "{condition}");
        assert_eq!(left(&project, &[&condition, "preprocess.memory=1KiB"]).0, expected, "{condition}");
    }
    for (condition, expected) in [
        ("SUM(huge + 1) > 2", "the sum 9223372036854775810 needs more than 64 bits; convert the values, as in `SUM("),
        ("SUM(huge + 1) OVER (ORDER BY timestamp) > 2", "the sum 9223372036854775810 needs more than 64 bits"),
        ("wide + 1 > 2", "conversion from `u64` to `i64` failed"),
        ("bytes = 'x'", "has invalid UTF-8 in `bytes` in row 2"),
        (
            "day >= '2020-01-03'",
            "compares `day`, which is a date, with text at character 1; a date is written as in `DATE",
        ),
    ] {
        let error = refused(&project, &[&format!("preprocess.where={condition}")]);
        assert!(error.contains(expected), "{condition}: {error}");
    }
}

#[test]
fn a_column_has_one_type_in_all_parquet_files() {
    let columns = |item: &str, column: ArrayRef| -> [(&str, ArrayRef); 4] {
        [
            ("user_id", Arc::new(StringArray::from(vec!["u"]))),
            ("item_id", Arc::new(StringArray::from(vec![item]))),
            ("timestamp", Arc::new(Int64Array::from(vec![1]))),
            ("value", column),
        ]
    };
    let whole = || -> ArrayRef { Arc::new(Int64Array::from(vec![1])) };
    let others: [(ArrayRef, &str); 4] = [
        (Arc::new(Float64Array::from(vec![1.5])), ""),
        (Arc::new(Date32Array::from(vec![1])), "has a date in `value`"),
        (Arc::new(BooleanArray::from(vec![true])), "has true or false in `value`"),
        (Arc::new(StringArray::from(vec!["1"])), "has text in `value`"),
    ];
    for (other, expected) in others {
        let files = "[source]\nformat = \"tabular\"\ninteractions = [\"1.parquet\", \"2.parquet\"]";
        let project = shop_of(&format!("{files}\n{ALL}"));
        write_parquet(&project, "1.parquet", columns("a", whole()));
        write_parquet(&project, "2.parquet", columns("b", other));
        if expected.is_empty() {
            assert_eq!(left(&project, &["preprocess.where=value > 0"]).0, ["a", "b"]);
        } else {
            let error = refused(&project, &["preprocess.where=value IS NOT NULL"]);
            assert!(error.contains(expected) && error.contains("has a whole number there"), "{error}");
        }
    }
}

fn parquet_of(user: ArrayRef, item: ArrayRef, time: ArrayRef) -> Project {
    let project = table("e.parquet");
    write_parquet(&project, "e.parquet", [("user_id", user), ("item_id", item), ("timestamp", time)]);
    project
}

#[test]
fn parquet_columns_of_every_type_mean_the_same() {
    let text = || -> ArrayRef { Arc::new(StringArray::from(vec!["7", "8"])) };
    let ids: [ArrayRef; 8] = [
        text(),
        Arc::new(BinaryArray::from(vec![b"7".as_slice(), b"8"])),
        Arc::new(DictionaryArray::<Int32Type>::from_iter(["7", "8"])),
        Arc::new(Int32Array::from(vec![7, 8])),
        Arc::new(UInt32Array::from(vec![7, 8])),
        Arc::new(UInt64Array::from(vec![7, 8])),
        Arc::new(Decimal128Array::from(vec![7, 8]).with_precision_and_scale(10, 0).unwrap()),
        Arc::new(arrow_array::UInt8Array::from(vec![7, 8])),
    ];
    let (day, seconds) = (86_400, [86_400_i64, 172_800]);
    let times: [ArrayRef; 12] = [
        Arc::new(Int64Array::from(seconds.to_vec())),
        Arc::new(Int32Array::from(vec![day, 2 * day])),
        Arc::new(UInt64Array::from(vec![86_400, 172_800])),
        Arc::new(Float64Array::from(vec![86_400.9, 172_800.0])),
        Arc::new(Decimal128Array::from(vec![8_640_090, 17_280_000]).with_precision_and_scale(12, 2).unwrap()),
        Arc::new(Date32Array::from(vec![1, 2])),
        Arc::new(TimestampSecondArray::from(seconds.to_vec())),
        Arc::new(TimestampMillisecondArray::from(vec![86_400_999, 172_800_000])),
        Arc::new(TimestampMicrosecondArray::from(vec![86_400_000_000, 172_800_000_000])),
        Arc::new(TimestampNanosecondArray::from(vec![86_400_000_000_000, 172_800_000_000_000])),
        Arc::new(TimestampMillisecondArray::from(vec![86_400_000, 172_800_000]).with_timezone("+05:30")),
        Arc::new(StringArray::from(vec!["86400", "172800"])),
    ];
    let mut projects: Vec<Project> =
        ids.into_iter().map(|ids| parquet_of(ids.clone(), ids, times[0].clone())).collect();
    projects.extend(times.iter().map(|time| parquet_of(text(), text(), time.clone())));
    for project in projects {
        project.run_stderr("preprocess", &[]);
        let made = dataset_of(&project);
        assert_eq!(
            (made.users.ids, made.items.ids),
            (vec!["7".to_owned(), "8".to_owned()], vec!["7".into(), "8".into()])
        );
        assert_eq!(made.sequences.times, seconds);
    }
}

/// The first rows, which are checked before the stage runs, are read in a different way from whole files.
#[test]
fn the_first_rows_have_the_times_of_typed_columns_in_any_zone() {
    let text = || -> ArrayRef { Arc::new(StringArray::from(vec!["7", "8"])) };
    let instants = || TimestampMicrosecondArray::from(vec![1_500_000_000_000_000, 1_500_086_400_000_000]);
    let mut times: Vec<ArrayRef> = vec![Arc::new(Date32Array::from(vec![17_361, 17_362])), Arc::new(instants())];
    for zone in ["UTC", "Europe/Berlin", "+02:00"] {
        times.push(Arc::new(instants().with_timezone(zone)));
    }
    for time in times {
        let kind = time.data_type().to_string();
        let project = parquet_of(text(), text(), time);
        for key in ["source.time=", "source.time=s"] {
            let said = project.output("doctor", &["--set", "model.name=popularity", "--set", key]);
            assert!(said.status.success(), "{kind}, {key}: {}", mp4sr_tests::stderr_of(&said));
        }
        project.run_stderr("preprocess", &["--set", "source.time=s"]);
        let days: Vec<i64> = dataset_of(&project).sequences.times.iter().map(|time| time / 86_400).collect();
        assert_eq!(days, [17_361, 17_362], "{kind}");
    }
}

#[test]
fn a_parquet_file_without_times_is_in_the_order_of_its_rows() {
    let text = |values: [&str; 3]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
    let project = table("e.parquet");
    write_parquet(&project, "e.parquet", [("user_id", text(["u", "u", "u"])), ("item_id", text(["b", "a", "c"]))]);
    assert_eq!(left(&project, &["source.time=line-order", "source.columns.time="]).0, ["b", "a", "c"]);
}

#[test]
fn nan_satisfies_no_condition() {
    let text = |values: [&str; 3]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
    let columns: [(&str, ArrayRef); 4] = [
        ("user_id", text(["u", "u", "u"])),
        ("item_id", text(["a", "b", "c"])),
        ("timestamp", Arc::new(Int64Array::from(vec![1, 2, 3]))),
        ("rating", Arc::new(Float64Array::from(vec![5.0, f64::NAN, 3.0]))),
    ];
    let project = table("e.parquet");
    write_parquet(&project, "e.parquet", columns);
    let (items, dropped) = left(&project, &["preprocess.where=rating >= 4"]);
    assert_eq!((items, dropped["condition on a missing value"]), (vec!["a".to_owned()], 1));
}

#[test]
fn a_parquet_column_without_a_meaning_is_refused_and_rows_without_a_value_are_counted() {
    let text = || -> ArrayRef { Arc::new(StringArray::from(vec!["7", "8"])) };
    let number = || -> ArrayRef { Arc::new(Int64Array::from(vec![1, 2])) };
    let truth = || -> ArrayRef { Arc::new(BooleanArray::from(vec![true, false])) };
    let list: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)]), None]));
    let float: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 2.0]));
    for (project, expected) in [
        (parquet_of(float, text(), number()), "`user_id` of type f64, expected text or a whole number"),
        (parquet_of(text(), truth(), number()), "`item_id` of type bool"),
        (parquet_of(text(), text(), truth()), "`timestamp` of type bool, expected a date, a time, a number or text"),
        (parquet_of(text(), text(), list), "`timestamp` of type list[i32]"),
    ] {
        let error = refused(&project, &[]);
        assert!(error.contains(expected) && error.contains("e.parquet"), "{error}");
    }
    let users: ArrayRef = Arc::new(BinaryArray::from(vec![Some(b"\xff".as_slice()), None, Some(b"u")]));
    let items: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "c"]));
    let project = parquet_of(users, items, Arc::new(Int64Array::from(vec![1, 2, 3])));
    let error = refused(&project, &[]);
    assert!(error.contains("2 of 3 lines of") && error.contains("`preprocess.max_bad_share` above 0.5"), "{error}");
    project.run_stderr("preprocess", &["--set", "preprocess.max_bad_share=1"]);
    let report = dataset_of(&project).report;
    let reasons: Vec<(&str, u64)> =
        report.interactions.rejected.0.iter().map(|(reason, rejected)| (reason.as_str(), rejected.count)).collect();
    assert_eq!(reasons, [("invalid UTF-8", 1), ("no `user_id`", 1)]);
}
