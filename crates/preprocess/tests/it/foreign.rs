//! Tests data as other programs, people and warehouses write it: read correctly or refused with the reason, never silently misread.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::builder::{FixedSizeListBuilder, ListBuilder, StringBuilder};
use arrow_array::{
    ArrayRef, BinaryArray, Date32Array, Float32Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use mp4sr_tests::Project;
use parquet::arrow::ArrowWriter;

use crate::harness::{Dataset, dataset_of, histories, item, shop_of};

const ALL: &str = "[preprocess]\nuser_core = 0\nitem_core = 0\n";

/// A project with these raw files, whose `[source]` has `keys`.
fn shop(files: &[(&str, &[u8])], keys: &str, more: &str) -> Project {
    let project = shop_of(&format!("[source]\n{keys}\n{more}\n{ALL}"));
    for (name, content) in files {
        project.write_raw(name, content);
    }
    project
}

fn made(files: &[(&str, &[u8])], keys: &str, more: &str) -> (Dataset, String) {
    let project = shop(files, keys, more);
    let reported = project.run_stderr("preprocess", &[]);
    (dataset_of(&project), reported)
}

fn refused(files: &[(&str, &[u8])], keys: &str, more: &str) -> String {
    shop(files, keys, more).run_failing("preprocess", &[])
}

fn tabular(file: &str) -> String {
    format!("format = \"tabular\"\ninteractions = [\"{file}\"]")
}

fn histories_are(made: &Dataset, expected: &[(&str, &[&str])]) {
    let expected: BTreeMap<String, Vec<String>> = expected
        .iter()
        .map(|(user, items)| ((*user).to_owned(), items.iter().map(|&item| item.to_owned()).collect()))
        .collect();
    assert_eq!(histories(made), expected);
}

/// Interactions of one user, with these items and times.
fn events(times: &[(&str, &str)]) -> String {
    let lines = times.iter().map(|(item, time)| format!("u,{item},\"{time}\"\n"));
    format!("user_id,item_id,timestamp\n{}", lines.collect::<String>())
}

#[test]
fn times_keep_their_fractions_until_events_are_ordered() {
    for (what, times, seconds) in [
        ("fractions", ["1600000000.9", "1600000000.1", "1600000000.50"], 1_600_000_000),
        (
            "nanoseconds as a fraction",
            ["1600000000.000000003", "1600000000.000000001", "1600000000.000000002"],
            1_600_000_000,
        ),
        ("milliseconds", ["1600000000900", "1600000000100", "1600000000500"], 1_600_000_000),
        ("microseconds", ["1600000000000003", "1600000000000001", "1600000000000002"], 1_600_000_000),
        ("nanoseconds", ["1600000000000000003", "1600000000000000001", "1600000000000000002"], 1_600_000_000),
        ("dates", ["2020-09-13 12:26:40.9", "2020-09-13T12:26:40.1Z", "2020-09-13T14:26:40.5+02:00"], 1_600_000_000),
        ("scientific", ["1.6000000009e9", "1.6000000001e9", "1.6000000005e9"], 1_600_000_000),
    ] {
        let content = events(&[("c", times[0]), ("a", times[1]), ("b", times[2])]);
        let project = shop(&[("e.csv", content.as_bytes())], &tabular("e.csv"), "");
        for memory in ["", "1KiB"] {
            let _ = std::fs::remove_dir_all(project.path("shop/dataset"));
            project.run_stderr("preprocess", &["--set", &format!("preprocess.memory={memory}")]);
            let made = dataset_of(&project);
            histories_are(&made, &[("u", &["a", "b", "c"])]);
            assert_eq!(
                (made.sequences.times[0].div_euclid(10), made.report.statistics.ties),
                (seconds / 10, 0),
                "{what}"
            );
        }
    }
    let lines = br#"{"user_id": "u", "item_id": "c", "timestamp": 1600000000.000000003}
{"user_id": "u", "item_id": "a", "timestamp": 1600000000.000000001}
{"user_id": "u", "item_id": "b", "timestamp": "1600000000.000000002"}
"#;
    histories_are(&made(&[("e.jsonl", lines)], &tabular("e.jsonl"), "").0, &[("u", &["a", "b", "c"])]);
    let positions = b"user_id,item_id,n\nu,c,1.10\nu,a,1.02\nu,b,1.1\nu,d,12\n";
    let (made, _) = made(&[("e.csv", positions)], &tabular("e.csv"), "[source.columns]\nposition = \"n\"");
    histories_are(&made, &[("u", &["a", "c", "b", "d"])]);
    assert_eq!(made.sequences.times, [1, 1, 1, 12]);
    let in_order = format!("{}\ntime = \"line-order\"", tabular("e.csv"));
    let error = refused(&[("e.csv", positions)], &in_order, "[source.columns]\nposition = \"n\"");
    assert!(error.contains("\"line-order\" and `source.columns.position` contradict each other"), "{error}");
    let error = refused(&[("e.csv", positions)], &tabular("e.csv"), "[source.columns]\ntime = \"t\"\nposition = \"n\"");
    assert!(
        error.contains("`source.columns.time` = \"t\" and `source.columns.position` = \"n\" contradict"),
        "{error}"
    );
}

#[test]
fn bounds_within_a_second_divide_events_within_it() {
    let content = events(&[("a", "1600000000.25"), ("b", "1600000000.5"), ("c", "1600000000.75"), ("d", "1600000001")]);
    let project = shop(&[("e.csv", content.as_bytes())], &tabular("e.csv"), "");
    for (set, expected) in [
        (&["preprocess.since=1600000000.3"][..], &["b", "c", "d"][..]),
        (&["preprocess.until=2020-09-13T12:26:40.5Z"], &["a"]),
        (&["preprocess.since=1600000000.5", "preprocess.until=1600000001"], &["b", "c"]),
        (&["preprocess.where=timestamp < 1600000000.6"], &["a", "b"]),
    ] {
        let arguments: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        project.run_stderr("preprocess", &arguments);
        histories_are(&dataset_of(&project), &[("u", expected)]);
    }
}

#[test]
fn notations_of_time_are_recognised_and_reported_or_named_by_a_key() {
    for (times, key, reported) in [
        (["2020-07-05 05:27:48.378", "2020-07-05 05:28:00.001"], "", "is read as ISO 8601 dates"),
        (["2018-09-20", "2018-09-21"], "", "ISO 8601 dates"),
        (["20180920", "20180921"], "", "dates written as `%Y%m%d`"),
        (["1588687728923", "1588687729000"], "", "Unix time in milliseconds"),
        (["31.12.2018", "01.01.2019"], "", "dates written as `%d.%m.%Y`"),
        (["01/02/2018", "01/03/2018"], "%d/%m/%Y", ""),
        (["06 17, 2018", "06 18, 2018"], "", "dates written as `%m %d, %Y`"),
        (["1500000000", "2018-01-01"], "mixed", ""),
        (["14.07.2017 02:40:00", "15.07.2017 02:40:00"], "", "dates written as `%d.%m.%Y %H:%M:%S`"),
        (["07/14/2017 02:40:00.5", "07/15/2017 02:40:00"], "", "dates written as `%m/%d/%Y %H:%M:%S%.f`"),
        (["2017-07-14 02:40:00", "15.07.2017 02:40:00"], "mixed", ""),
    ] {
        let content = events(&[("b", times[1]), ("a", times[0])]);
        let keys = format!("{}\ntime = \"{key}\"", tabular("e.csv"));
        let (made, message) = made(&[("e.csv", content.as_bytes())], &keys, "");
        histories_are(&made, &[("u", &["a", "b"])]);
        assert!(message.contains(reported), "{times:?}: {message}");
        assert_eq!(made.report.interactions.times.len(), usize::from(!reported.is_empty()));
    }
    for (times, key, expected) in [
        (["01/02/2018", "01/03/2018"], "", "may be dates written as"),
        (["yesterday", "today"], "", "ISO 8601 dates such as"),
        (["1500000000", "1500000001"], "ms", "not a Unix time in milliseconds (seconds?)"),
        (["2018-01-01", "2018-01-02"], "fortnights", "is not a notation of time"),
    ] {
        let content = events(&[("b", times[1]), ("a", times[0])]);
        let keys = format!("{}\ntime = \"{key}\"", tabular("e.csv"));
        let error = refused(&[("e.csv", content.as_bytes())], &keys, "");
        assert!(error.contains(expected) && !error.contains("source.format"), "{times:?}: {error}");
    }
    let mixed = events(&[("a", "1500000000"), ("b", "1500000001"), ("c", "2018-01-01"), ("d", "2018-01-02")]);
    let error = refused(&[("e.csv", mixed.as_bytes())], &tabular("e.csv"), "");
    assert!(error.contains("source.time = \"mixed\""), "{error}");
    let units = [
        ("a.csv", events(&[("a", "1500000000000"), ("c", "1500000002000")])),
        ("b.csv", events(&[("b", "1500000001")])),
    ];
    let files = [("a.csv", units[0].1.as_bytes()), ("b.csv", units[1].1.as_bytes())];
    let keys = "format = \"tabular\"\ninteractions = [\"a.csv\", \"b.csv\"]";
    histories_are(&made(&files, keys, "").0, &[("u", &["a", "b", "c"])]);
    let project = shop(&files, keys, "");
    let error = project.run_failing("preprocess", &["--set", "preprocess.since=1500000000"]);
    assert!(error.contains("numbers of several units; give a date"), "{error}");
}

#[test]
fn lines_in_order_need_no_time_and_have_no_clock() {
    let content = b"user_id,item_id\nu1,a\nu1,b\nu2,b\nu1,c\n";
    let keys = format!("{}\ntime = \"line-order\"", tabular("e.csv"));
    let (made, _) = made(&[("e.csv", content)], &keys, "[source.columns]\ntime = \"\"");
    histories_are(&made, &[("u1", &["a", "b", "c"]), ("u2", &["b"])]);
    assert_eq!(made.sequences.time_kind, mp4sr_artifact::TimeKind::Positions);
    let error = refused(&[("e.csv", content)], &tabular("e.csv"), "[source.columns]\ntime = \"\"");
    assert!(error.contains("source.time = \"line-order\""), "{error}");
}

#[test]
fn json_as_people_write_it() {
    let interactions: &[u8] = b"user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\n";
    let items = br#"{"item_id": "a", "title": "Red kettle", "price": 3.5}
{"item_id": "b", "title": "Blue kettle", "price": NaN}
{"item_id": "c", "title": "Green \ud83d kettle", "price": -Infinity}
"#;
    let keys = format!("{}\nitems = [\"items.jsonl\"]", tabular("i.csv"));
    let (made_of_lines, _) = made(&[("i.csv", interactions), ("items.jsonl", items)], &keys, "");
    assert_eq!(made_of_lines.items.titles, ["Red kettle", "Blue kettle", "Green \u{fffd} kettle"]);
    let array = b"[\n  {\n    \"user_id\": \"u1\",\n    \"item_id\": \"a\",\n    \"timestamp\": \"2\"\n  },\n  {\"user_id\": \"u1\", \"item_id\": \"b\", \"timestamp\": 1}\n]\n";
    histories_are(&made(&[("i.json", array)], &tabular("i.json"), "").0, &[("u1", &["b", "a"])]);
    let python = b"{u'user_id': u'Walker', u'hours': 0.1, u'item_id': u'725280', u'timestamp': 2, u'early': False}\n\
                   {'user_id': \"Walker\", 'item_id': 328100, 'timestamp': 1, 'x': None}\n";
    histories_are(&made(&[("r.json", python)], &tabular("r.json"), "").0, &[("Walker", &["328100", "725280"])]);
    let reviews = br#"{"reviewerID": "A1", "asin": "B0", "unixReviewTime": 1500000000}"#;
    let keys = "format = \"amazon-2018\"\ninteractions = [\"r.json\"]\nitems = [\"m.json\"]";
    let (made_of_2014, _) = made(&[("r.json", reviews), ("m.json", b"{'asin': 'B0', 'title': 'Lamp'}\n")], keys, "");
    assert_eq!(made_of_2014.items.titles, ["Lamp"]);
    let error = refused(&[("r.json", reviews), ("m.json", b"{'asin'\n[1]\n{'asin'\n")], keys, "");
    assert!(
        error.contains("m.json` contains no item: 3 lines were read and none could be used, 2 for: broken JSON"),
        "{error}"
    );
}

/// Interactions with each of these items, and a table of items.
fn catalogue(ids: &[&str], name: &str, items: &[u8], keys: &str, columns: &str) -> Dataset {
    let lines = ids.iter().enumerate().map(|(at, id)| format!("u,{id},{}\n", at + 1)).collect::<Vec<_>>().concat();
    let interactions = format!("user_id,item_id,timestamp\n{lines}");
    let keys = format!("{}\nitems = [\"{name}\"]\n{keys}", tabular("i.csv"));
    made(&[("i.csv", interactions.as_bytes()), (name, items)], &keys, &format!("[source.columns]\n{columns}")).0
}

#[test]
fn texts_without_content_are_dropped_and_counted() {
    let items = b"item_id,title,genres\n1,Heat (1995),Action|Crime\n2,Untitled (2017),(no genres listed)\n3,nan,NULL\n4,Nan Goldin,to be announced\n";
    let columns = "texts = [\"genres\"]\ntext_separator = \"|\"\ncategories = [\"genres\"]\ncategory_separator = \"|\"";
    let made = catalogue(&["1", "2", "3", "4"], "movies.csv", items, "", columns);
    assert_eq!(item(&made, "1").1, ["Heat (1995)", "Action, Crime"]);
    assert_eq!(item(&made, "2").1, ["Untitled (2017)"]);
    assert_eq!(item(&made, "3"), (String::new(), vec![], vec![]));
    assert_eq!(item(&made, "4").1, ["Nan Goldin", "to be announced"]);
    assert_eq!(made.items.categories, [vec!["Action", "Crime"], vec![], vec![], vec!["to be announced"]]);
    assert_eq!(made.report.items.dropped_texts.total(), 3);
    let project = shop(
        &[("r.json", br#"{"reviewerID": "A1", "asin": "B0", "unixReviewTime": 1500000000}"#.as_slice()), ("m.json", br#"{"asin": "B0", "title": "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();", "description": ["A small lamp.", "TBA"], "brand": "Lumo"}"#)],
        "format = \"amazon-2018\"\ninteractions = [\"r.json\"]\nitems = [\"m.json\"]",
        "",
    );
    project.run_stderr("preprocess", &["--set", "preprocess.placeholders=[\"TBA\"]"]);
    let made = dataset_of(&project);
    assert_eq!(item(&made, "B0"), (String::new(), vec!["Lumo".to_owned(), "A small lamp.".to_owned()], vec![]));
    let reasons: Vec<&String> = made.report.items.dropped_texts.0.keys().collect();
    assert_eq!(reasons, ["text: marker of a missing value", "title: script of a web page"]);
}

#[test]
fn several_values_in_a_cell_are_several() {
    let items = b"item_id,title,genres,images\n1,Heat,\"['Action', 'Crime']\",\"['https://e.org/1.jpg', 'https://e.org/1b.jpg']\"\n\
                  2,Alien,\"[\"\"Horror\"\",\"\"Sci-Fi\"\"]\",//e.org/2.jpg|//e.org/2b.jpg\n\
                  3,Brazil,\"[{'id': 1, 'name': 'Satire'}]\",\"https://e.org/3.jpg?a=1&amp;b=2, https://e.org/3b.jpg\"\n\
                  4,[REC],\"['A light mist.' 'Keep it cool.']\",\"{'large': array(['https://e.org/4.jpg'], dtype=object)}\"\n";
    let made = catalogue(&["1", "2", "3", "4"], "items.csv", items, "", "texts = [\"genres\"]\nimages = \"images\"");
    let texts: Vec<Vec<String>> = made.items.sentences.clone();
    assert_eq!(
        texts,
        [
            vec!["Heat", "Action, Crime"],
            vec!["Alien", "Horror, Sci-Fi"],
            vec!["Brazil", "Satire"],
            vec!["[REC]", "A light mist.", "Keep it cool."]
        ]
    );
    assert_eq!(made.items.images[0], ["https://e.org/1.jpg", "https://e.org/1b.jpg"]);
    assert_eq!(made.items.images[1], ["https://e.org/2.jpg", "https://e.org/2b.jpg"]);
    assert_eq!(made.items.images[2], ["https://e.org/3.jpg?a=1&b=2", "https://e.org/3b.jpg"]);
    assert_eq!(made.items.images[3], ["https://e.org/4.jpg"]);
    let lines = br#"{"item_id": 1, "title": "Heat", "genres": [{"id": 28, "name": "Action"}, {"id": 80, "name": "Crime"}], "details": {"Color": "Blue", "Material": "Oak"}}"#;
    let made = catalogue(&["1"], "items.jsonl", lines, "", "texts = [\"genres\", \"details\"]");
    assert_eq!(item(&made, "1").1, ["Heat", "Action, Crime", "Color: Blue, Material: Oak"]);
}

#[test]
fn only_html_is_removed_and_only_where_it_may_be() {
    let items = b"item_id,title,text\n1,C++ <vector> and <map> cookbook,<p>Soft &amp; warm</p>\n2,Pencil&notebook a<b and c>d,x\n";
    let made_of_all = catalogue(&["1", "2"], "items.csv", items, "", "texts = [\"text\"]");
    assert_eq!(item(&made_of_all, "1").1, ["C++ <vector> and <map> cookbook", "Soft & warm"]);
    assert_eq!(item(&made_of_all, "2").0, "Pencil&notebook a<b and c>d");
    // Entries of markup alone leave no comma.
    let lists = br#"{"item_id": 1, "title": ["", "<b></b>", "Heat", "Director's cut"], "text": ["<p></p>", "a", "<i></i>", "<b>b</b>", "<script>x</script>"]}"#;
    let made_of_lists = catalogue(&["1"], "items.jsonl", lists, "", "texts = [\"text\"]");
    assert_eq!(item(&made_of_lists, "1").1, ["Heat, Director's cut", "a, b"]);
    let made_of_none = catalogue(&["1", "2"], "items.csv", items, "html = []", "texts = [\"text\"]");
    assert_eq!(item(&made_of_none, "1").1[1], "<p>Soft &amp; warm</p>");
    let keys = format!("{}\nhtml = [\"body\"]", tabular("i.csv"));
    let error =
        refused(&[("i.csv", b"user_id,item_id,timestamp\nu,1,1\n")], &keys, "[source.columns]\ntexts = [\"text\"]");
    assert!(error.contains("`source.html` names `body`") && error.contains("title, text"), "{error}");
}

#[test]
fn dialects_of_tables_are_recognised_or_named() {
    let expected: &[(&str, &[&str])] = &[("A1", &["B01", "B02"]), ("A2", &["B01"])];
    let header = "interactions_header = [\"user_id\", \"item_id\", \"rating\", \"timestamp\"]";
    let utf_16: Vec<u8> = "\u{feff}user_id,item_id,timestamp\nA1,B01,1\nA1,B02,2\nA2,B01,1\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (name, content, keys) in [
        ("i.csv", &b"A1,B01,5.0,1600000000\nA1,B02,4.0,1600000001\nA2,B01,4.0,1600000001\n"[..], header),
        ("u.data", b"A1\tB01\t5\t881250949\nA1\tB02\t3\t891717742\nA2\tB01\t3\t891717742\n", header),
        ("ratings.dat", b"A1::B01::5::978300760\nA1::B02::3::978302109\nA2::B01::3::978302109\n", header),
        ("tabs.csv", b"user_id\titem_id\ttimestamp\nA1\tB01\t1\nA1\tB02\t2\nA2\tB01\t1\n", ""),
        ("semicolons.csv", b"user_id;item_id;timestamp\n\"A1\";B01;1,25\nA1;B02;1,5\nA2;B01;1\n", ""),
        ("pipes.txt", b"user_id|item_id|timestamp\nA1|B01|1\nA1|B02|2\nA2|B01|1\n", ""),
        ("other.csv", b"user_id~~item_id~~timestamp\nA1~~B01~~1\nA1~~B02~~2\nA2~~B01~~1\n", "separator = \"~~\""),
        ("utf-16.csv", &utf_16, ""),
    ] {
        let (made, _) = made(&[(name, content)], &format!("{}\n{keys}", tabular(name)), "");
        histories_are(&made, expected);
    }
    let commas = b"user_id:token,item_id:token,timestamp:float\n1,2,3\n1,3,4\n";
    let (made_of_commas, reported) =
        made(&[("x.inter", commas)], "format = \"recbole\"\ninteractions = [\"x.inter\"]", "");
    histories_are(&made_of_commas, &[("1", &["2", "3"])]);
    assert!(reported.contains("x.inter` are separated by ,"), "{reported}");
    for (name, content, keys, expected) in [
        ("i.csv", &b"A1,B01,5.0,1600000000\n"[..], "", "has no header: its first line is `A1,B01,5.0,1600000000`"),
        ("p.tsv", b"u1\t1 2 3 4\n", "", "source.columns.item_separator"),
        ("i.csv", b"user_id,item_id,item_id,timestamp\nu,1,2,3\n", "", "has the column `item_id` twice"),
        ("i.csv", b"user_id,item,timestamp\nu,1,2\n", "", "has no column `item_id` (did you mean `item`?)"),
        ("i.csv", b"1,2,3\n", header, "has 3 columns separated by `,` in its first line"),
        ("i.csv", b"user_id,item_id,timestamp\nu,1,2\n", "encoding = \"klingon\"", "is not a known encoding"),
    ] {
        let error = refused(&[(name, content)], &format!("{}\n{keys}", tabular(name)), "");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn tables_that_are_not_utf_8_are_refused_with_the_key_that_reads_them() {
    let items = b"item_id,title\n1,Les Mis\xe9rables\n2,Heat\n";
    let interactions: &[u8] = b"user_id,item_id,timestamp\nu,1,1\nu,2,2\n";
    let keys = format!("{}\nitems = [\"movies.csv\"]", tabular("i.csv"));
    let error = refused(&[("i.csv", interactions), ("movies.csv", items)], &keys, "");
    assert!(error.contains("movies.csv` is not UTF-8") && error.contains("source.encoding = \"latin-1\""), "{error}");
    let made = catalogue(&["1", "2"], "movies.csv", items, "encoding = \"latin-1\"", "");
    assert_eq!(made.items.titles, ["Les Mis\u{e9}rables", "Heat"]);
    let quoted = b"item_id\ttitle\n1\t\"The \"\"Big\"\" Kettle\"\n2\t\"Two\nlines\"\n3\tPlain\n";
    let made = catalogue(&["1", "2", "3"], "items.tsv", quoted, "", "");
    assert_eq!(made.items.titles, ["The \"Big\" Kettle", "Two lines", "Plain"]);
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn a_line_may_hold_a_sequence() {
    let expected: &[(&str, &[&str])] = &[("u1", &["1", "2", "3", "4"]), ("u2", &["2", "3", "1"])];
    let keys = format!("{}\ntime = \"line-order\"\ninteractions_header = [\"user_id\", \"item_id\"]", tabular("p.tsv"));
    let (made_of_blanks, _) =
        made(&[("p.tsv", b"u1\t1 2 3 4\nu2\t2 3  1\n")], &keys, "[source.columns]\nitem_separator = \" \"");
    histories_are(&made_of_blanks, expected);
    let report = &made_of_blanks.report;
    assert_eq!(
        (report.interactions.files[0].accepted, report.interactions.files[0].further_events, report.events.read),
        (2, NonZeroU64::new(5), 7)
    );
    let texts = |texts: &[&str]| -> ArrayRef { Arc::new(StringArray::from_iter_values(texts.iter().copied())) };
    let table = parquet(vec![("user_id", texts(&["u1", "u2"])), ("item_id", texts(&["1 2 3 4", "2 3  1"]))]);
    for more in ["", "[preprocess]\nwhere = \"user_id <> 'u3'\"\nuser_core = 0\nitem_core = 0\n"] {
        let keys = format!("{}\ntime = \"line-order\"", tabular("p.parquet"));
        let columns = "[source.columns]\nitem_separator = \" \"";
        let project = shop_of(&format!("[source]\n{keys}\n{columns}\n{}", if more.is_empty() { ALL } else { more }));
        project.write_raw("p.parquet", &table);
        project.run_stderr("preprocess", &[]);
        histories_are(&dataset_of(&project), expected);
    }
    let lines = b"{\"user_id\": \"u1\", \"item_id\": [1, 2, 3, 4], \"timestamp\": [5, 6, 7, 8]}\n{\"user_id\": \"u2\", \"item_id\": [1, 2, 3], \"timestamp\": [9, 7, 8]}\n{\"user_id\": \"u3\", \"item_id\": [1], \"timestamp\": [1, 2]}\n";
    let (made_of_lists, _) = made(&[("p.jsonl", lines)], &tabular("p.jsonl"), "");
    histories_are(&made_of_lists, expected);
    let reason = made_of_lists.report.interactions.rejected.most_frequent().unwrap();
    assert_eq!(reason, ("different numbers of values in `timestamp` and `item_id`", 1));
    let text = b"user_id,item_id,timestamp\nu1,\"['1', '2', '3', '4']\",\"[1, 2, 3, 4]\"\nu2,\"['2', '3', '1']\",\"[1, 2, 3]\"\n";
    histories_are(&made(&[("p.csv", text)], &tabular("p.csv"), "").0, expected);
    let mut items = ListBuilder::new(StringBuilder::new());
    for list in [&["1", "2", "3", "4"][..], &["2", "3", "1"]] {
        list.iter().for_each(|item| items.values().append_value(item));
        items.append(true);
    }
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("user_id", Arc::new(StringArray::from(vec!["u1", "u2"]))),
        ("item_id", Arc::new(items.finish())),
        ("timestamp", Arc::new(TimestampMicrosecondArray::from(vec![5, 6]))),
    ];
    histories_are(&made(&[("s.parquet", &parquet(columns))], &tabular("s.parquet"), "").0, expected);
}

#[test]
fn every_type_of_a_parquet_file_of_items_is_read_or_refused() {
    let mut tags = FixedSizeListBuilder::new(StringBuilder::new(), 2);
    ["a heist", "a chase"].iter().for_each(|tag| tags.values().append_value(tag));
    tags.append(true);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("item_id", Arc::new(BinaryArray::from(vec![b"1".as_slice()]))),
        ("title", Arc::new(StringArray::from(vec!["Heat"]))),
        ("price", Arc::new(Float32Array::from(vec![9.99]))),
        ("tags", Arc::new(tags.finish())),
        ("released", Arc::new(Date32Array::from(vec![9479]))),
        ("image", Arc::new(BinaryArray::from(vec![b"\x89PNG\r\n\x1a\n".as_slice()]))),
    ];
    let bytes = parquet(columns);
    let columns = "texts = [\"price\", \"tags\", \"released\"]\nimages = \"image\"";
    let made = catalogue(&["1"], "m.parquet", &bytes, "", columns);
    assert!(item(&made, "1").2[0].contains("/shop/dataset/embedded/"), "{:?}", made.items.images);
    assert_eq!(item(&made, "1").1, ["Heat", "9.99", "a heist, a chase", "1995-12-15"]);
    let floats: Vec<(&str, ArrayRef)> = vec![
        ("user_id", Arc::new(StringArray::from(vec!["u", "u"]))),
        ("item_id", Arc::new(StringArray::from(vec!["b", "a"]))),
        ("timestamp", Arc::new(Float64Array::from(vec![1_600_000_000.75, 1_600_000_000.5]))),
    ];
    histories_are(
        &crate::foreign::made(&[("e.parquet", &parquet(floats))], &tabular("e.parquet"), "").0,
        &[("u", &["a", "b"])],
    );
    let of_2023: Vec<(&str, ArrayRef)> = vec![
        ("user_id", Arc::new(StringArray::from(vec!["AE1", "AE1"]))),
        ("parent_asin", Arc::new(StringArray::from(vec!["B02", "B01"]))),
        ("timestamp", Arc::new(Int64Array::from(vec![1_588_687_729_000, 1_588_687_728_923]))),
    ];
    let keys = "format = \"amazon-2023\"\ninteractions = [\"r.parquet\"]";
    histories_are(&crate::foreign::made(&[("r.parquet", &parquet(of_2023))], keys, "").0, &[("AE1", &["B01", "B02"])]);
}

#[test]
fn ids_that_do_not_match_are_reported_with_the_cause() {
    let interactions: &[u8] = b"user_id,item_id,timestamp\nc1,0108775015,1\nc1,0110065001,2\n";
    let keys = format!("{}\nitems = [\"articles.csv\"]", tabular("i.csv"));
    let error = refused(
        &[("i.csv", interactions), ("articles.csv", b"item_id,title\n108775015,Top\n110065001,Shirt\n")],
        &keys,
        "",
    );
    for expected in
        ["`0108775015` of", "has `108775015` in line 2", "leading zeros were lost", "preprocess.min_described"]
    {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let error = refused(&[("i.csv", interactions), ("articles.csv", b"item_id,title\nx1,Top\n")], &keys, "");
    assert!(error.contains("check that both files belong to one dataset"), "{error}");
    let (half, reported) = made(
        &[("i.csv", interactions), ("articles.csv", b"item_id,title\n0108775015,Top\n110065001.0,Shirt\n")],
        &keys,
        "",
    );
    assert!(
        reported.contains("50.0 % of the events have an item with a line")
            && reported.contains("`110065001.0` in line 3"),
        "{reported}"
    );
    assert!((half.report.join.unwrap().events_with_line - 0.5).abs() < 1e-9);
    let lines: &[u8] = b"{\"item_id\": \"0108775015\", \"title\": \"Top\", \"overview\": \"A top.\"}\n";
    let keys = format!("{}\nitems = [\"items.jsonl\"]", tabular("i.csv"));
    let error =
        refused(&[("i.csv", interactions), ("items.jsonl", lines)], &keys, "[source.columns]\ntexts = [\"overveiw\"]");
    assert!(error.contains("items.jsonl` has no field `overveiw` in any line (did you mean `overview`?)"), "{error}");
    let keys = format!("{}\nitems = [\"items.csv\"]", tabular("i.csv"));
    let (_, reported) = made(
        &[("i.csv", interactions), ("items.csv", b"item_id,title,text\n0108775015,Top,\n0110065001,Shirt,\n")],
        &keys,
        "[source.columns]\ntexts = [\"text\"]",
    );
    assert!(reported.contains("`text` of") && reported.contains("is empty in every line"), "{reported}");
}

/// The photographs are numbered on their own, so those of other items are named by the ids of items, too.
#[test]
fn a_file_that_a_line_names_comes_before_one_that_is_named_by_the_id_of_the_item() {
    let items =
        b"item_id,title,image\n1,Cup,2.png\n2,Pot,3.png\n3,Pan,https://e.org/x.jpg\n4,Lid,gone.png\n5,Lamp,5.png\n\
                  6,Mug,\"data:image/png;base64,?\"\n";
    let events = b"user_id,item_id,timestamp\nu,1,1\nu,2,2\nu,3,3\nu,4,4\nu,5,5\nu,6,6\n";
    let names = ["1", "2", "3", "4", "5", "5_2", "6"].map(|name| format!("pics/{name}.png"));
    let mut files = vec![("i.csv", &events[..]), ("items.csv", items)];
    files.extend(names.iter().map(|name| (name.as_str(), &b"x"[..])));
    let keys = format!("{}\nitems = [\"items.csv\"]\nimages = \"pics\"", tabular("i.csv"));
    let (made, _) = made(&files, &keys, "[source.columns]\nimages = \"image\"");
    let names = made.items.images.concat().into_iter();
    let names: Vec<String> = names.map(|name| name.rsplit('/').next().unwrap().to_owned()).collect();
    assert_eq!(names, ["2.png", "3.png", "3.png", "4.png", "5.png", "5_2.png", "6.png"]);
}

#[test]
fn items_that_have_left_the_catalogue_can_be_dropped() {
    let events = b"user_id,item_id,timestamp\nu,1,1\nu,2,2\nv,1,3\nv,3,4\n";
    let keys = format!("{}\nitems = [\"items.csv\"]", tabular("i.csv"));
    let files: [(&str, &[u8]); 2] = [("i.csv", events), ("items.csv", b"item_id,title\n1,Cup\n3,\n")];
    let shop = |missing: &str| {
        let project = shop_of(&format!("[source]\n{keys}\n{ALL}missing = \"{missing}\"\n"));
        files.iter().for_each(|(name, content)| _ = project.write_raw(name, content));
        let reported = project.run_stderr("preprocess", &[]);
        (dataset_of(&project), reported)
    };
    let (kept, reported) = shop("keep");
    histories_are(&kept, &[("u", &["1", "2"]), ("v", &["1", "3"])]);
    assert!(reported.contains("33.3 % of the items with events have no line"), "{reported}");
    let (dropped, reported) = shop("drop_undescribed");
    histories_are(&dropped, &[("u", &["1"]), ("v", &["1", "3"])]);
    assert!(!reported.contains("have no line in"), "{reported}");
}

#[test]
fn images_are_found_in_folders_below_and_by_pattern() {
    let files: &[(&str, &[u8])] = &[
        ("i.csv", b"user_id,item_id,timestamp\nc1,0108775015,1\nc1,0110065001,2\n"),
        ("articles.csv", b"item_id,title\n0108775015,Top\n0110065001,Shirt\n"),
        ("images/010/0108775015.jpg", b"x"),
        ("images/011/0110065001.tif", b"x"),
    ];
    for (images, expected) in [("images", [1, 1]), ("images/{id:3}/{id}", [1, 1]), ("images/{id:3}/{id}.jpg", [1, 0])] {
        let keys = format!("{}\nitems = [\"articles.csv\"]\nimages = \"{images}\"", tabular("i.csv"));
        let (made, _) = made(files, &keys, "");
        assert_eq!([0, 1].map(|item: usize| made.items.images[item].len()), expected, "{images}");
    }
}

#[test]
fn items_that_are_dropped_as_incomplete_do_not_come_back_as_items_without_events() {
    let files: &[(&str, &[u8])] = &[
        ("i.csv", b"user_id,item_id,timestamp\nu,a,1\nu,b,2\nv,a,1\nv,c,2\n"),
        ("items.csv", b"item_id,title,image\na,A,https://e.org/a.jpg\nb,B,\nc,,https://e.org/c.jpg\nd,D,https://e.org/d.jpg\ne,E,\n"),
    ];
    let keys = format!("{}\nitems = [\"items.csv\"]", tabular("i.csv"));
    let project = shop(files, &keys, "");
    let keys = ["preprocess.missing=drop", "preprocess.items_without_events=keep", "source.columns.images=image"];
    project.run_stderr("preprocess", &keys.iter().flat_map(|key| ["--set", key]).collect::<Vec<_>>());
    assert_eq!(dataset_of(&project).items.ids, ["a", "d"]);
}

#[test]
fn items_without_events_are_kept_on_request() {
    let files: &[(&str, &[u8])] = &[
        ("i.csv", b"user_id,item_id,timestamp\nu,a,1\nu,b,2\nv,b,1\nw,b,1\nw,rare,2\n"),
        ("items.csv", b"item_id,title\nnew,New teapot\nb,B\nrare,Rare\nnew,again\n"),
    ];
    let keys = format!("{}\nitems = [\"items.csv\"]", tabular("i.csv"));
    let project = shop(files, &keys, "");
    project.run_stderr("preprocess", &["--set", "preprocess.item_core=2"]);
    assert_eq!(dataset_of(&project).items.ids, ["b"]);
    project.run_stderr(
        "preprocess",
        &["--set", "preprocess.item_core=2", "--set", "preprocess.items_without_events=keep"],
    );
    let made = dataset_of(&project);
    assert_eq!(
        (made.items.ids, made.items.titles),
        (vec!["b".to_owned(), "rare".into(), "new".into()], vec!["B".to_owned(), "Rare".into(), "New teapot".into()])
    );
    assert_eq!((made.sequences.item_count, made.report.statistics.items_without_events), (3, NonZeroU64::new(2)));
    project.run_stderr(
        "preprocess",
        &["--set", "preprocess.items_without_events=keep", "--set", "preprocess.where=item_id <> 'a'"],
    );
    assert_eq!(dataset_of(&project).items.ids, ["b", "rare", "new"]);
}
