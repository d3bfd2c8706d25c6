//! Comparisons, searches and studies, run by the real programs on a small world: what they write, share and run again. `make test` builds
//! the programs first.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use mp4sr_artifact::{FeatureType, Features, Items, Table, files, hash_ids};
use mp4sr_pipeline::Config;
use mp4sr_run::model_catalog;
use mp4sr_tests::{Project, root, stderr_of};

const GRID: [&str; 6] =
    ["--grid", "finetune.learning_rate=0.001,0.01", "--grid", "finetune.batch=32,64", "--name", "lr"];

#[test]
fn a_search_is_resumed_sorts_by_validation_and_never_reads_the_test_set() {
    let world = Project::small();
    let printed = world.run("search", &GRID);
    let rows: Vec<&str> = printed.lines().filter(|line| line.contains("lr.learning_rate")).collect();
    assert_eq!(rows.len(), 4 + 1, "four runs and the best: {printed}");
    let recalls: Vec<f64> =
        rows[..4].iter().map(|row| row.split('|').nth(3).unwrap().trim().parse().unwrap()).collect();
    assert!(recalls.is_sorted_by(|a, b| a >= b), "{recalls:?}");
    assert!(rows[4].starts_with("Best on validation: `lr.learning_rate-"), "{printed}");
    assert!(printed.contains("at the limit of epochs"), "{printed}");
    let runs = files::list(&world.path("a/runs")).unwrap();
    assert_eq!(runs.len(), 4);
    for run in &runs {
        assert!(!run.join("ranks.test.safetensors").exists(), "a search ranks nothing");
    }

    // Of the runs with the same pre-training, one is pre-trained and the others copy its weights.
    let weights = |run: &Path| files::read(&run.join("pretrain.safetensors")).unwrap();
    assert!(runs.iter().all(|run| weights(run) == weights(&runs[0])));
    let records: Vec<_> = runs.iter().map(|run| files::read(&run.join("pretrain.manifest.json")).unwrap()).collect();
    assert!(records.iter().all(|record| *record == records[0]), "one run made them, the others hold its record");

    // A finished search has nothing to do; a deleted run is trained again, and the others are left unchanged.
    let changed = |run: &Path| std::fs::metadata(run.join("finetune.safetensors")).unwrap().modified().unwrap();
    let (before, bytes) = (changed(&runs[0]), files::read(&runs[1].join("finetune.safetensors")).unwrap());
    files::remove_dir_if_present(&runs[1]).unwrap();
    assert_eq!(
        world.run("search", &[&GRID[..], &["--jobs", "2"]].concat()),
        printed,
        "two at once give the same table"
    );
    assert_eq!(changed(&runs[0]), before);
    assert!(files::read(&runs[1].join("finetune.safetensors")).unwrap() == bytes);
    assert_eq!(world.text("a/searches/lr/table.csv").lines().count(), 5);

    // Runs that select their epoch by other metrics are compared by the metric of the search.
    let by_metric =
        ["--set", "finetune.epochs=2", "--set", "model.name=sasrec", "--grid", "train.metric=R@5,N@20", "--name", "m"];
    let printed = world.run("search", &by_metric);
    for run in ["m.metric-R_5", "m.metric-N_20"] {
        let row = printed.lines().find(|line| line.contains(run)).unwrap();
        let log = world.text(&format!("a/runs/{run}/metrics.jsonl"));
        let latest_first = log.lines().rev().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let best = { latest_first }.find(|line| line["best"] == true).unwrap();
        let expected = format!("{:.4}", best["validation"]["R@20"].as_f64().unwrap());
        assert_eq!(row.split('|').nth(2).unwrap().trim(), expected, "{printed}");
    }

    let without_grid = ["--set", "model.name=\"popularity\""];
    let refused = world.output("search", &without_grid);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && message.contains("`popularity` does not have its own grid"), "{message}");

    for more in [&["--dry-run"][..], &[]] {
        let refused = world.output("search", &[&["--grid", "finetune.batch=0,64"], more].concat());
        let printed = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && printed.contains("finetune.batch"), "{printed}");
    }
    let planned = world.run("search", &[&GRID[..], &["--dry-run"]].concat());
    assert_eq!(planned, "runs of `a`: 4; finished: 4; missing: 0\n");
    let refused = world.output(
        "search",
        &["--set", "model.name=\"popularity\"", "--grid", "model.popularity.latest_share=0.5,1", "--name", "p"],
    );
    let printed = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && printed.contains("is not trained in epochs"), "{printed}");
}

#[test]
fn a_failed_run_does_not_stop_the_others_and_is_reported() {
    let world = Project::small();
    world.run("preprocess", &[]);
    // The second value has a modality that no stage extracts.
    let grid = r#"model.modalities=[{name="text"}],[{name="sound",features="mine"}]"#;
    let output = world.output("search", &["--grid", grid, "--name", "m"]);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1));
    assert!(out.contains("stopped early") || out.contains("at the limit"), "{out}");
    assert!(out.contains("Not finished: ") && out.contains("sound.mine.safetensors"), "{out}");
    assert!(err.contains("unfinished runs: 1"), "{err}");
}

#[test]
fn tables_figures_and_comparisons_come_from_stored_ranks() {
    let world = Project::small();
    let printed = world.run("study", &["table2", "--seeds", "2"]);
    for row in ["popularity", "SASRec", "MP4SR w/o Pre-train", "MP4SR "] {
        assert!(printed.contains(&format!("| {row}")), "{row}: {printed}");
    }
    assert!(printed.contains("**") && printed.contains("<u>") && printed.contains('±'), "{printed}");
    assert!(printed.contains("## The paper's Table 2") && printed.contains("0.1322"), "{printed}");
    assert_eq!(world.text("a/studies/table2/table.md"), printed);
    let csv = world.text("a/studies/table2/table.csv");
    // MP4SR with and without pre-training, and all other models.
    let models = model_catalog().models().count() + 1;
    assert_eq!(csv.lines().count(), 1 + models * 7, "seven metrics of each model");

    // Other studies and comparisons reuse the same runs.
    let made = files::list(&world.path("a/runs")).unwrap().len();
    assert_eq!(made, 2 * models, "two seeds of each model");
    world.run("study", &["fig8", "--seeds", "2"]);
    assert_eq!(files::list(&world.path("a/runs")).unwrap().len(), made);
    let image = files::read(&world.path("a/studies/fig8/figure.png")).unwrap();
    assert!(image.starts_with(b"\x89PNG") && world.text("a/studies/fig8/figure.svg").starts_with("<svg"));
    let words = ["MP4SR=mp4sr.s2020,mp4sr.s2021", "popularity.s2020", "--metrics", "R@3,MRR"];
    let compared = world.run("compare", &words);
    assert!(compared.contains("R@3") && compared.contains("| MP4SR") && !compared.contains("N@"), "{compared}");
    let csv = world.run("compare", &[&words[..], &["--csv"]].concat());
    assert_eq!(csv.lines().count(), 1 + 2 * 2, "{csv}");

    // Ranks of short histories are stored beside the others.
    let cold = world.run("study", &["cold-start", "--seeds", "1"]);
    assert!(
        cold.contains("from the last event of each history") && cold.contains("fewer than 10 training events"),
        "{cold}"
    );
    assert!(world.path("a/runs/sasrec.s2020/ranks.test.history-3.safetensors").exists());

    let missing = world.output("compare", &["nobody"]);
    let printed = String::from_utf8(missing.stderr).unwrap();
    assert!(printed.contains("runs/nobody/ranks.test.safetensors") && printed.contains("mp4sr evaluate"), "{printed}");
}

#[test]
fn lists_of_runs_are_compared_and_computed_by_a_study() {
    let world = Project::small();
    let refused = world.run_failing("study", &["fig8", "--lists"]);
    assert!(refused.contains("`--lists` with table2"), "{refused}");
    let refused = world.run_failing("study", &["table6", "--lists", "--set", "recommend.top=4"]);
    assert!(refused.contains("shorter than 5"), "{refused}");
    let printed = world.run("study", &["table6", "--seeds", "2", "--lists"]);
    assert!(printed.contains("## The lists") && printed.contains("diversity"), "{printed}");
    assert!(printed.contains("Note: K = 20 is left out"), "the lists have ten items: {printed}");
    assert!(world.text("a/studies/table6/lists.csv").contains("diversity@5"));
    let runs = "MP4SR=mp4sr.s2020,mp4sr.s2021";
    let text = world.run("compare", &["only-text.s2020", runs, "--lists"]);
    assert!(text.contains("coverage") && text.contains('±') && !text.contains("R@5"), "{text}");
    let refused = world.output("compare", &[runs, "--lists", "--validation"]);
    assert!(!refused.status.success() && mp4sr_tests::stderr_of(&refused).contains("cannot be used with"));
    let csv = world.run("compare", &["only-text.s2020", runs, "--lists", "--csv"]);
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let value = |name: &str, metric: &str| -> f64 {
        let row = rows.iter().find(|row| row[0] == name && row[1] == metric);
        row.unwrap_or_else(|| panic!("{name} {metric}: {csv}"))[3].parse().unwrap()
    };

    // The values of one run are those of its report, and coverage is counted from the lists themselves.
    let own =
        ["--run", "only-text.s2020", "--set", "model.mp4sr.logit_modalities=[\"text\"]", "--set", "run.seed=2020"];
    let settings = world.text("a/runs/only-text.s2020/config.toml");
    assert!(settings.contains("logit_modalities = [\"text\"]"), "{settings}");
    let mut lists = Table::read(&world.path("a/runs/only-text.s2020/recommendations.parquet"), "").unwrap();
    let listed: BTreeSet<String> =
        lists.take_texts("items").unwrap().into_iter().flat_map(|list| list.into_iter().take(5)).collect();
    let items = Items::read(&world.path("a/dataset/items.parquet")).unwrap().ids.len();
    assert!((value("only-text.s2020", "coverage@5") - listed.len() as f64 / items as f64).abs() < 1e-12, "{csv}");
    world.run("report", &own);
    let twice = world.run("compare", &["only-text.s2020", "--metrics", "R@5,R@5"]);
    assert_eq!(twice.matches("R@5").count(), 1, "{twice}");
    let report = world.text("a/runs/only-text.s2020/report/lists.csv");
    let report: Vec<Vec<&str>> = report.lines().map(|line| line.split(',').collect()).collect();
    let at_five = report.iter().find(|row| row[1] == "5").unwrap();
    for (name, found) in report[0].iter().zip(at_five).skip(2) {
        let found: f64 = found.parse().unwrap();
        assert!((value("only-text.s2020", &format!("{name}@5")) - found).abs() < 1e-9, "{name}: {csv} {report:?}");
    }

    // Lists are compared without ranks.
    for run in ["mp4sr.s2020", "mp4sr.s2021", "only-text.s2020"] {
        files::remove_if_present(&world.path(&format!("a/runs/{run}/ranks.test.safetensors"))).unwrap();
    }
    assert_eq!(world.run("compare", &["only-text.s2020", runs, "--lists"]), text);

    // Each seed counts once.
    let first = ["--run", "mp4sr.s2021", "--set", "run.seed=2020"];
    for stage in ["pretrain", "finetune", "recommend"] {
        world.run(stage, &first);
    }
    let refused = world.run_failing("compare", &[runs, "--lists"]);
    assert!(refused.contains("its lists have the same seed as those of the run `mp4sr.s2020`"), "{refused}");
    let second = ["--run", "mp4sr.s2021", "--set", "run.seed=2021"];
    for stage in ["pretrain", "finetune"] {
        world.run(stage, &second);
    }

    // Lists that were computed in different ways have no common mean.
    let after = ["--run", "mp4sr.s2021", "--set", "run.seed=2021", "--set", "recommend.before_test_item=false"];
    world.run("recommend", &after);
    let refused = world.run_failing("compare", &[runs, "--lists"]);
    assert!(refused.contains("the `recommend.before_test_item` of its lists is false"), "{refused}");

    files::remove_if_present(&world.path("a/runs/mp4sr.s2021/recommendations.parquet")).unwrap();
    let missing = world.run_failing("compare", &[runs, "--lists"]);
    assert!(
        missing.contains("mp4sr.s2021/recommendations.parquet") && missing.contains("mp4sr recommend"),
        "{missing}"
    );

    // Lists of other sequences are refused, too, because their users may be others.
    world.run("preprocess", &["--set", "preprocess.recent=6"]);
    let refused = world.run_failing("compare", &["only-text.s2020", "--lists", "--set", "preprocess.recent=6"]);
    assert!(refused.contains("sequences.safetensors` has changed since the lists were computed"), "{refused}");
    world.run("preprocess", &[]);

    // So are lists of other features of the same items.
    let features = files::list(&world.path("a/features")).unwrap().into_iter();
    let text = features.clone().find(|path| path.to_string_lossy().contains("/text.")).unwrap();
    let sound = files::read(&text).unwrap();
    let items = Items::read(&world.path("a/dataset/items.parquet")).unwrap();
    let own = Features::read(&text, &items.hash(), items.len()).unwrap();
    let zeros = vec![0.0; own.to_f32().len()];
    Features::from_f32(own.offsets.clone(), &zeros, own.width(), FeatureType::F32, items.hash())
        .unwrap()
        .write(&text, "test", serde_json::Value::Null)
        .unwrap();
    let refused = world.run_failing("compare", &["only-text.s2020", "--lists"]);
    assert!(refused.contains("the features of text have changed since the lists were computed"), "{refused}");
    files::write_bytes(&text, &sound).unwrap();

    // If the features belong to other items, the report of a model that reads no features and a comparison of lists lack the diversity.
    let popularity = ["--run", "popularity", "--set", "model.name=\"popularity\""];
    for stage in ["finetune", "evaluate", "recommend"] {
        world.run(stage, &popularity);
    }
    let features = files::list(&world.path("a/features")).unwrap().into_iter();
    let text_features = features.filter(|path| path.to_string_lossy().contains("/text.")).collect::<Vec<_>>();
    let other = Features::from_f32(vec![0, 1], &[1.0], 1, FeatureType::F32, hash_ids(["x"])).unwrap();
    other.write(&text_features[0], "test", serde_json::Value::Null).unwrap();
    let reported = world.run_stderr("report", &popularity);
    assert!(reported.contains("the diversity of the lists is left out"), "{reported}");
    let compared = world.output("compare", &["popularity", "--lists", "--csv"]);
    let warned = mp4sr_tests::stderr_of(&compared);
    assert!(
        warned.contains("different item list") && warned.contains("diversity of the lists is left out"),
        "{warned}"
    );
    let csv = String::from_utf8(compared.stdout).unwrap();
    assert!(compared.status.success() && csv.contains("novelty@5") && !csv.contains("diversity@5"), "{csv}");
}

#[test]
fn a_report_and_a_comparison_print_the_same_intervals_and_p_values_for_the_same_ranks() {
    let world = Project::small();
    let popularity = ["--run", "popularity", "--set", "model.name=\"popularity\""];
    for stage in ["preprocess", "extract", "finetune", "evaluate"] {
        world.run(stage, if stage == "extract" { &[] } else { &popularity });
    }
    for stage in ["pretrain", "finetune", "evaluate", "recommend"] {
        world.run(stage, &[]);
    }
    world.run("report", &["--set", "report.beside=[\"popularity\"]"]);
    let report = world.text("a/runs/mp4sr/report/metrics.md");
    let csv = world.run("compare", &["popularity", "mp4sr", "--metrics", "R@5,R@10,R@20,N@5,N@10,N@20,MRR", "--csv"]);
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let column =
        |name: &str| rows[0].iter().position(|column| *column == name).unwrap_or_else(|| panic!("{name}: {csv}"));
    let value = |row: &[&str], name: &str| row[column(name)].parse::<f64>().unwrap();

    let intervals: Vec<String> = rows[1..]
        .iter()
        .filter(|row| row[0] == "mp4sr")
        .map(|row| format!("{} {:.4} to {:.4}", row[1], value(row, "low"), value(row, "high")))
        .collect();
    assert_eq!(intervals.len(), 7, "{csv}");
    assert!(
        report.contains(&format!("95 % bootstrap intervals over users: {}.", intervals.join(", "))),
        "{intervals:?} {report}"
    );

    // Of two runs, the better one is tested against the other either way, so p does not depend on which one is the reference.
    let tests = rows[1..].iter().filter(|row| !row[column("t-test p after Holm")].is_empty());
    let expected: BTreeMap<String, Vec<String>> = tests
        .map(|row| {
            let shown = ["t-test p after Holm", "Wilcoxon p after Holm"].map(|name| match value(row, name) {
                p if p < 0.0001 => "< 0.0001".to_owned(),
                p => format!("{p:.4}"),
            });
            (row[1].to_owned(), shown.into())
        })
        .collect();
    assert_eq!(expected.len(), 7, "{csv}");
    let lines = report.lines().filter(|line| line.starts_with("| popularity") && line.contains(['+', '-']));
    let cells = lines.map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>());
    let printed: BTreeMap<String, Vec<String>> =
        cells.map(|cells| (cells[3].clone(), vec![cells[5].clone(), cells[6].clone()])).collect();
    assert_eq!(printed, expected, "{report} {csv}");
}

#[test]
fn a_larger_pre_training_uses_all_datasets_and_is_applied_to_an_unseen_one() {
    let world = Project::small();
    world.add("b", 7);
    world.add("c", 11);
    // A pipeline with another model; fine-tuning uses the model of the first pipeline.
    let other = world.raw_text("c.toml").replace("width = 16", "width = 16\nmax_sequence_length = 5");
    let other = other.replace("[model]", "[model]\nmodalities = [{ name = \"text\" }]");
    files::write_bytes(&world.pipeline("c"), other.as_bytes()).unwrap();
    let (b, c) = (world.pipeline("b"), world.pipeline("c"));
    // The data folder of the command line applies to the study's own pipeline, not to those that set one.
    let moved = world.folder().join("moved");
    std::fs::create_dir(&moved).unwrap();
    for file in ["a.tsv", "a.jsonl"] {
        std::fs::rename(world.folder().join(file), moved.join(file)).unwrap();
    }
    std::fs::copy(world.folder().join("one.png"), moved.join("one.png")).unwrap();
    let data = moved.to_str().unwrap();
    let words =
        ["table5", "--data", data, "--seeds", "1", "--with", b.to_str().unwrap(), "--unseen", c.to_str().unwrap()];
    let printed = world.run("study", &words);
    assert!(printed.contains("Pre-trained on a, b together."), "{printed}");
    assert!(printed.contains("c, not seen in pre-training, 60 users"), "{printed}");
    assert_eq!(printed.matches("MP4SR, larger").count(), 3, "{printed}");
    let config = world.text("c/runs/alike.larger.s2020/config.toml");
    assert!(config.contains("from = \"a_b/mp4sr.s2020\""), "{config}");
    let alone = files::read(&world.path("a/runs/mp4sr.s2020/finetune.safetensors")).unwrap();
    assert!(alone != files::read(&world.path("a/runs/larger.s2020/finetune.safetensors")).unwrap());
    assert!(!world.path("a/runs/larger.s2020/pretrain.safetensors").exists());
}

#[test]
fn losses_sweeps_and_noise_are_drawn() {
    let world = Project::small();
    let fig3 = world.run("study", &["fig3", "--seeds", "2"]);
    assert!(fig3.contains("1: with pre-training") && fig3.contains("3: without pre-training"), "{fig3}");
    let csv = world.text("a/studies/fig3/table.csv");
    assert_eq!(csv.lines().count(), 1 + 3 * 2 * 2 * 2, "layers, starts, seeds, epochs");
    world.run("study", &["fig4", "--seeds", "1"]);
    assert!(world.text("a/studies/fig4/figure.svg").contains("0.001"));
    let noise = world.run("study", &["study-noise", "--seeds", "1"]);
    for row in ["no noise", "no noise, w/o Pre-train", "text lost: 0.8", "image of another item: 0.5, w/o Pre-train"] {
        assert!(noise.contains(&format!("| {row} ")), "{row}: {noise}");
    }
    let (values, gains) = noise.split_once("## The gain of pre-training").unwrap();
    assert_eq!((values.matches(" lost: ").count(), gains.matches(" lost: ").count()), (12, 6), "{noise}");
    assert_eq!(gain(gains, "text lost: 0.8"), recall(values, "text lost: 0.8"), "{noise}");
    let whole = circles_at(&world.text("a/studies/study-noise/figure.svg"));
    let run = world.path("a/runs/mp4sr-lost-text-0.2.s2020");
    std::fs::remove_dir_all(&run).unwrap();
    files::write_bytes(&run, b"no folder").unwrap();
    assert!(!world.output("study", &["study-noise", "--seeds", "1"]).status.success());
    let mut with_gap = circles_at(&world.text("a/studies/study-noise/figure.svg"));
    assert!(with_gap["0.2"] < whole["0.2"]);
    with_gap.insert("0.2".to_owned(), whole["0.2"]);
    assert_eq!(with_gap, whole, "a row that fails moves no other");
    let refused = world.output("study", &["table5"]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("name them with `--with`"));
}

/// The gain in R@20 of a setting.
fn gain(table: &str, setting: &str) -> i64 {
    ten_thousandths(table, setting, 2)
}

/// The R@20 of a setting with pre-training minus that without.
fn recall(table: &str, setting: &str) -> i64 {
    ten_thousandths(table, setting, 4) - ten_thousandths(table, &format!("{setting}, w/o Pre-train"), 4)
}

/// A column of the row of a setting, in ten-thousandths.
fn ten_thousandths(table: &str, setting: &str, column: usize) -> i64 {
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let row = table.lines().map(cells).find(|cells| cells.get(1).is_some_and(|name| name == setting)).unwrap();
    let number: f64 = row[column].trim_matches(|c: char| !c.is_ascii_digit() && c != '-').parse().unwrap();
    (number * 10_000.0).round() as i64
}

/// The number of circles in a figure that are nearest to each share.
fn circles_at(svg: &str) -> BTreeMap<String, usize> {
    let number = |line: &str, key: &str| -> Option<i64> {
        let (_, rest) = line.split_once(&format!(" {key}=\""))?;
        rest.split_once('"')?.0.parse().ok()
    };
    let lines: Vec<&str> = svg.lines().collect();
    let texts = lines.windows(2).filter(|two| two[0].starts_with("<text") && two[0].contains("\"middle\""));
    let shares: Vec<(i64, &str)> = texts
        .filter(|two| ["0", "0.2", "0.5", "0.8"].contains(&two[1]))
        .map(|two| (number(two[0], "x").unwrap(), two[1]))
        .collect();
    let mut counts = BTreeMap::new();
    for x in lines.iter().filter(|line| line.starts_with("<circle")).filter_map(|line| number(line, "cx")) {
        let (_, share) = shares.iter().min_by_key(|(position, _)| (position - x).abs()).unwrap();
        *counts.entry((*share).to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn a_table_of_cold_items_without_cold_items_is_refused_before_anything_is_trained() {
    let world = Project::small();
    let mut events = String::from("user_id\titem_id\ttimestamp\n");
    for user in 0..30 {
        for at in 0..5 {
            let _ = writeln!(events, "u{user}\ti{}\t{}", (user + at) % 5, 1_600_000_000 + 86_400 * at);
        }
    }
    world.write("a.tsv", events);
    let refused = world.run_failing("study", &["table3", "--seeds", "1"]);
    assert!(refused.contains("no user's target is an item with fewer than 10 training events"), "{refused}");
    assert!(!world.path("a/runs").exists());
}

#[test]
fn a_search_with_few_items_compares_by_the_metric_that_selects_epochs() {
    let world = Project::small();
    let words = ["--grid", "finetune.learning_rate=0,0.01", "--name", "few", "--set", "train.metric=R@30"];
    let printed = world.run("search", &words);
    assert!(printed.contains("validation MRR") && !printed.contains("validation R@30"), "{printed}");
}

#[test]
fn tables_of_searches_and_studies_have_no_passwords() {
    let world = Project::small();
    let secret = ["--set", "serve.store=\"postgres://shop:hunter2@localhost/shop\""];
    let searched = world.run("search", &[&["--grid", "finetune.batch=64", "--name", "one"], &secret[..]].concat());
    let studied = world.run("study", &[&["table6", "--quick"], &secret[..]].concat());
    let tables = ["a/searches/one/table.md", "a-quick/studies/table6/table.md"].map(|path| world.text(path));
    for text in [&searched, &studied, &tables[0], &tables[1]] {
        assert!(text.contains("postgres://shop:") && !text.contains("hunter2"), "{text}");
    }
}

/// Every study that no other test runs, as a smoke run on a world with images.
#[test]
fn every_other_study_has_its_rows_and_its_smoke_run() {
    let world = Project::small();
    let fixtures = root().join("crates/extract/tests/fixtures/resnet");
    let resnet = fixtures.to_str().unwrap();
    let run =
        |study: &str, flags: &[&str]| world.run("study", &[&[study, "--quick", "--jobs", "2"][..], flags].concat());
    let adapter = root().join("crates/extract/tests/fixtures/adapter");
    let [text, image] = ["modernbert", "dinov2"].map(|name| adapter.join(name).to_string_lossy().into_owned());
    let cases: [(&str, &[&str], &[&str]); 10] = [
        ("table1", &[], &["| a-quick | ", "| Poetry"]),
        (
            "table3",
            &[],
            &["targets with fewer than 10 training events", "The paper's Table 3", "\n| CLCRec", "\n| MASR"],
        ),
        (
            "table4",
            &["--resnet", resnet],
            &["w/o NIP", "w/o CMCL", "w/o C-Mixup", "w/o Proj", "E2E", "Shared", "ResNet"],
        ),
        ("table6", &[], &["MP4SR-T", "MP4SR-V", "| MP4SR "]),
        ("fig5", &[], &["N = 5 ", "N = 50 ", "these belong to its default setting"]),
        ("fig6", &[], &["O = 1 ", "O = 16 "]),
        ("fig7", &[], &["rho = 0.0 ", "rho = 0.5 "]),
        ("study-mixup", &[], &["p = 0.9 ", "p from U(0, 0.5)"]),
        (
            "study-image-features",
            &["--resnet", resnet],
            &["words of CLIP", "vectors of CLIP", "vectors of ResNet", "none"],
        ),
        (
            "study-encoders",
            &["--text-encoder", &text, "--image-encoder", &image],
            &["the pipeline's own", "text: ", "image: ", "| sentences ", "| images ", "seconds per 1,000"],
        ),
    ];
    for (study, flags, rows) in cases {
        let printed = run(study, flags);
        for row in rows {
            assert!(printed.contains(row), "{study}: {row}: {printed}");
        }
        assert!(
            !printed.contains("not run") && printed.contains("a smoke run") == (study != "table1"),
            "{study}: {printed}"
        );
        assert_eq!(world.text(&format!("a-quick/studies/{study}/table.md")), printed);
        let planned = run(study, &[flags, &["--dry-run"]].concat());
        assert!(planned.starts_with("runs") && planned.contains("; missing: 0\n"), "{study}: {planned}");
    }
    assert!(!world.path("a").exists(), "a smoke run is a dataset of its own");
    // Runs of studies that have the same settings are trained once: a copy has the times of the original.
    let run_of = |name: &str, file: &str| files::read(&world.path(&format!("a-quick/runs/{name}/{file}"))).unwrap();
    let default = Config::load(&world.path("a-quick/runs/mp4sr.s2020/config.toml"), &[], model_catalog()).unwrap().0;
    let (experts, words) = (&default.model.section("mp4sr")["experts"], default.extract.image.words);
    for same in [format!("O-{experts}.s2020"), format!("N-{words}.s2020")] {
        for file in ["pretrain.safetensors", "finetune.safetensors", "finetune.timing.json", "metrics.jsonl"] {
            assert!(run_of(&same, file) == run_of("mp4sr.s2020", file), "{same}: {file}");
        }
    }
    let planned = run("fig7", &["--dry-run", "--seeds", "2"]);
    assert!(planned.contains("; finished: 6; missing: 6\n") && planned.contains("would run"), "{planned}");

    // Figures show R@20 by default, or the largest K of a pipeline that evaluates others.
    let printed = run("fig7", &["--set", "evaluate.k=[1,3]"]);
    assert!(printed.contains("R@3") && printed.contains("Set for all runs: `evaluate.k=[1,3]`"), "{printed}");
    assert!(world.text("a-quick/studies/fig7/figure.svg").contains("R@3"));

    let printed = run("table4", &["--set", "run.preset=\"tuned\""]);
    assert!(!printed.contains("| w/o Proj") && printed.contains("the pipeline itself is w/o Proj"), "{printed}");

    // After a change of pre-training, one run is pre-trained again, and the others take its weights.
    let seconds = |run: &str| files::read(&world.path(&format!("a-quick/runs/{run}/pretrain.timing.json"))).unwrap();
    let before = seconds("mp4sr.s2020");
    run("table6", &["--set", "pretrain.learning_rate=0.002"]);
    assert!(before != seconds("mp4sr.s2020") && seconds("only-text.s2020") == seconds("mp4sr.s2020"));
    // The vectors of another encoder with a folder of the same name would replace those of the pipeline's own.
    let flags = ["study-encoders", "--quick", "--text-encoder", "other/tiny-sentence"];
    let refused = world.run_failing("study", &flags);
    assert!(refused.contains("would have the same file, `text.tiny-sentence.safetensors`"), "{refused}");
}

#[test]
fn a_grid_over_data_gives_every_run_its_own_dataset() {
    let world = Project::small();
    let printed = world.run("search", &["--grid", "preprocess.recent=5,6", "--name", "recent"]);
    assert!(printed.contains("| 5 ") && printed.contains("| 6 "), "{printed}");
    let events = |dataset: &str| {
        let report: serde_json::Value =
            serde_json::from_str(&world.text(&format!("{dataset}/dataset/report.json"))).unwrap();
        report["statistics"]["events"].as_u64().unwrap()
    };
    assert!(events("a.recent-5") < events("a.recent-6"));
    for run in ["a.recent-5/runs/recent.recent-5", "a.recent-6/runs/recent.recent-6"] {
        assert!(world.path(run).join("finetune.safetensors").exists(), "{run}");
    }
    assert!(world.text("a/searches/recent/table.md").contains("--set 'dataset.name=\"a.recent-"), "{printed}");

    // A run without epochs has no value by which it could be selected.
    let refused = world.run_failing("search", &["--grid", "model.name=\"sasrec\",\"popularity\"", "--name", "models"]);
    assert!(refused.contains("the model `popularity` is not trained in epochs"), "{refused}");
    assert!(!world.path("a/runs/models.name-_sasrec_").exists(), "nothing is trained before");

    assert!(printed.contains("different users among different items"), "{printed}");
    let twice = world.output("search", &["--grid", "finetune.batch=32", "--grid", "finetune.batch=64"]);
    assert!(crate::stderr_of(&twice).contains("`finetune.batch` is given twice"));
}

/// Rows have the settings that their names promise, whatever the pipeline sets, and impossible settings are rejected before training.
#[test]
fn every_row_has_the_settings_that_its_name_promises() {
    let world = Project::small();
    let pipeline = world.raw_text("a.toml").replace("[model]", "[model]\nname = \"sasrec\"");
    let pipeline = pipeline.replace("[model.mp4sr]", "[model.mp4sr]\nid_embedding = false\nmixup_max = 0.3");
    let pipeline = pipeline.replace("[pretrain]", "[pretrain]\nenabled = false");
    files::write_bytes(&world.pipeline("a"), pipeline.as_bytes()).unwrap();
    world.run("study", &["cold-start", "--quick"]);
    let is = |run: &str| {
        let text = world.text(&format!("a-quick/runs/{run}.s2020/config.toml"));
        let (config, _) = Config::parse(&text, run, &[], model_catalog()).unwrap();
        let has_ids = config.model.own()["id_embedding"] == true;
        (config.model.name, has_ids, config.pretrain.enabled)
    };
    assert_eq!(is("with-ids"), ("mp4sr".to_owned(), true, true));
    assert_eq!(is("no-id.warm"), ("mp4sr".to_owned(), false, true));
    assert_eq!(is("no-id.no-pretrain"), ("mp4sr".to_owned(), false, false));
    assert_eq!(is("sasrec").0, "sasrec");
    let refused = |words: &[&str], what: &str| {
        let output = world.output("study", words);
        assert!(!output.status.success() && stderr_of(&output).contains(what), "{words:?}: {}", stderr_of(&output));
    };
    refused(&["table2", "--set", "model.name=\"popularity\""], "the rows of a study differ in `model.name`");
    refused(&["fig6", "--set", "pretrain.enabled=false"], "the rows of a study differ in `pretrain.enabled`");
    let single = ["--set", "preprocess.recent=1", "--set", "preprocess.user_core=1"];
    refused(&[&["table2", "--seeds", "1"][..], &single].concat(), "no user has both a test event");
    world.add("b", 3);
    let (a, b) = (world.pipeline("a"), world.pipeline("b"));
    let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
    refused(&["table5", "--with", b, "--unseen", b], "names the dataset `b` a second time");
    refused(&["table5", "--with", a], "names the dataset `a` a second time");

    let refused = |words: &[&str], what: &str| {
        let output = world.output("compare", &[words, &["--set", "dataset.name=\"a-quick\""]].concat());
        assert!(!output.status.success() && stderr_of(&output).contains(what), "{words:?}: {}", stderr_of(&output));
    };
    refused(&["x=sasrec.s2020,sasrec.s2020"], "names the run `sasrec.s2020` twice");
    refused(&["x=sasrec.s2020", "x=popularity.s2020"], "two rows are called `x`");
    refused(&["x=sasrec.s2020,popularity.s2020"], "but the run `sasrec.s2020`, which should differ only by its seed");
}

/// The features of another program are copied to the smoke run, item by item.
#[test]
fn a_smoke_run_has_the_features_that_no_stage_computes() {
    let world = Project::small();
    let modalities = "[model]\nmodalities = [{name=\"text\"},{name=\"sound\",features=\"mine\"}]";
    // Most users met the items 901 to 920 only long ago.
    let (mut events, mut items) = (world.raw_text("a.tsv"), world.raw_text("a.jsonl"));
    for item in 901..921 {
        items += &format!("{{\"item_id\": \"i{item}\", \"title\": \"An old thing\"}}\n");
        (0..5).for_each(|user| events += &format!("u{user}\ti{item}\t{}\n", 1_500_000_000 + item));
    }
    let pipeline = world.raw_text("a.toml").replace("[model]", modalities);
    for (file, text) in [("a.tsv", &events), ("a.jsonl", &items), ("a.toml", &pipeline)] {
        files::write_bytes(&world.folder().join(file), text.as_bytes()).unwrap();
    }
    let missing = world.output("study", &["fig6", "--quick"]);
    assert!(stderr_of(&missing).contains("no stage creates it: write it"), "{}", stderr_of(&missing));
    // The feature row of an item is its number; some items have none.
    let items = Items::read(&world.path("a/dataset/items.parquet")).unwrap();
    let number = |id: &String| id[1..].parse::<f32>().unwrap();
    let rows: Vec<Vec<f32>> =
        items.ids.iter().map(|id| if number(id) % 4.0 == 0.0 { vec![] } else { vec![number(id), 1.0, 0.5] }).collect();
    let offsets: Vec<i64> = std::iter::once(0)
        .chain(rows.iter().scan(0, |sum, row| {
            *sum += row.len() as i64 / 3;
            Some(*sum)
        }))
        .collect();
    let features = Features::from_f32(offsets, &rows.concat(), 3, FeatureType::F32, items.hash()).unwrap();
    features.write(&world.path("a/features/sound.mine.safetensors"), "mine", serde_json::Value::Null).unwrap();

    let printed = world.run("study", &["table4", "--quick"]);
    assert!(printed.contains("Shared is left out: the modalities' features are of different widths"), "{printed}");
    let few = Items::read(&world.path("a-quick/dataset/items.parquet")).unwrap();
    assert!(few.len() < items.len());
    let path = world.path("a-quick/features/sound.mine.safetensors");
    let taken = Features::read(&path, &few.hash(), few.len()).unwrap();
    let values = taken.to_f32();
    for (at, id) in few.ids.iter().enumerate() {
        let own = &values[3 * taken.offsets[at] as usize..3 * taken.offsets[at + 1] as usize];
        let expected = if number(id) % 4.0 == 0.0 { vec![] } else { vec![number(id), 1.0, 0.5] };
        assert_eq!(own, expected, "{id}");
    }
    // A file that another program wrote for the smoke run itself is kept.
    files::remove_if_present(&world.path("a-quick/quick.manifest.json")).unwrap();
    let offsets = std::iter::once(0).chain(std::iter::repeat_n(1, few.len())).collect();
    let own = Features::from_f32(offsets, &[0.25; 3], 3, FeatureType::F32, few.hash()).unwrap();
    own.write(&path, "mine", serde_json::Value::Null).unwrap();
    world.run("study", &["fig7", "--quick"]);
    // What the user sets takes effect in a smoke run, too.
    let table = world.run("study", &["table6", "--quick", "--set", "finetune.epochs=1"]);
    assert!(table.contains("Set for all runs: `finetune.epochs=1`"), "{table}");
    let log = world.text("a-quick/runs/mp4sr.s2020/metrics.jsonl");
    assert_eq!(log.lines().filter(|line| line.contains("finetune")).count(), 1, "{log}");
    assert_eq!(Features::read(&path, &few.hash(), few.len()).unwrap(), own);
}

#[test]
fn ranks_of_other_events_or_weights_are_refused() {
    let world = Project::small();
    let stages = ["preprocess", "extract", "pretrain", "finetune", "evaluate"];
    stages.iter().for_each(|stage| {
        world.run(stage, &[]);
    });
    world.run("compare", &["mp4sr"]);
    let refused = |what: &str| {
        let printed = String::from_utf8(world.output("compare", &["mp4sr"]).stderr).unwrap();
        assert!(
            printed.contains(what)
                && printed.contains(
                    "has changed since the ranks were computed; delete it, and run `mp4sr evaluate --run mp4sr`"
                ),
            "{printed}"
        );
    };
    // The same items and users, with other events.
    world.run("preprocess", &["--set", "preprocess.recent=5"]);
    refused("sequences.safetensors");
    world.run("preprocess", &[]);
    world.run("compare", &["mp4sr"]);
    // Weights may be used with other events, with a warning.
    let other = ["--set", "preprocess.recent=5"];
    world.run("preprocess", &other);
    let trained_on = "the weights were trained on other sequences; `mp4sr train finetune` trains on these";
    assert!(stderr_of(&world.output("evaluate", &other)).contains(trained_on));
    assert!(stderr_of(&world.output("recommend", &other)).contains(trained_on));
    let one = [&other[..], &["--history", "i3"]].concat();
    assert!(stderr_of(&world.output("recommend", &one)).contains(trained_on));
    world.run("preprocess", &[]);
    assert!(!stderr_of(&world.output("evaluate", &[])).contains(trained_on));
    world.run("finetune", &["--set", "finetune.learning_rate=0.01"]);
    refused("finetune.safetensors");
}
