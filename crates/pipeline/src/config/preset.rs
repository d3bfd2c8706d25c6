use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// A reading of the paper (specification, section 10): all switches set together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// The defaults of this page.
    #[default]
    Default,
    /// The paper where it differs from the defaults: same-target negatives kept, inner products for logits.
    Paper,
    /// The authors' released code, as its README runs it.
    Released,
    /// What the validation splits of docs/results.md prefer to the defaults: no projection heads, twice the learning rate of
    /// pre-training, no weight decay.
    Tuned,
}

const PAPER: &str = r#"
[model]
pooling_gradient = "learned"
pooling_rows = "masked"
projection = "on"
same_target = "keep"
cmcl_direction = "symmetric"
logits = "dot"

[pretrain]
sequence_dropout = "fixed"

[finetune]
patience = 10

[preprocess]
preset = "strict-5core"
"#;

const RELEASED: &str = r#"
[model]
pooling_gradient = "frozen"
pooling_rows = "unmasked"
projection = "off"
same_target = "zero"
cmcl_direction = "row_sums"
logits = "cosine"

[pretrain]
sequence_dropout = "uniform"
patience = 20
clip_norm = 5.0

[finetune]
patience = 20
clip_norm = 5.0

[preprocess]
preset = "released"
repeated = "last"
"#;

const TUNED: &str = r#"
[model]
projection = "off"

[pretrain]
learning_rate = 0.002

[finetune]
weight_decay = 0.0
"#;

/// Sets the keys of `run.preset` that the table leaves open.
pub(super) fn fill(table: &mut Table) {
    let text = match table.get("run").and_then(|run| run.get("preset")).and_then(Value::as_str) {
        Some("paper") => PAPER,
        Some("released") => RELEASED,
        Some("tuned") => TUNED,
        _ => return,
    };
    let preset: Table = text.parse().unwrap_or_default();
    for (section, keys) in preset {
        let open = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let (Some(open), Value::Table(keys)) = (open.as_table_mut(), keys) {
            keys.into_iter().for_each(|(key, value)| {
                open.entry(key).or_insert(value);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Config;
    use crate::config::{
        CmclDirection, Logits, PoolingGradient, PoolingRows, Preset, Projection, SameTarget, SequenceDropout,
    };

    fn config(lines: &str) -> Config {
        Config::parse(&format!("dataset.name = \"x\"\n{lines}"), "x.toml", &[]).unwrap()
    }

    /// Every row of the specification's section 10 that has a switch.
    #[test]
    fn presets_set_every_switch_of_section_10() {
        let switches = |c: &Config| {
            let m = &c.model;
            (
                (m.pooling_gradient, m.pooling_rows, c.pretrain.sequence_dropout, m.projection),
                (m.same_target, m.cmcl_direction, m.logits),
                (c.finetune.patience, c.pretrain.patience, c.finetune.clip_norm, c.pretrain.clip_norm),
                (c.preprocess.user_core, c.preprocess.item_core),
            )
        };
        let paper_pooling = (PoolingGradient::Learned, PoolingRows::Masked, SequenceDropout::Fixed, Projection::On);
        let symmetric = CmclDirection::Symmetric;
        let default =
            (paper_pooling, (SameTarget::LeaveOut, symmetric, Logits::Cosine), (10, 20, 5.0, 5.0), (Some(5), Some(5)));
        assert_eq!(switches(&config("")), default);
        let paper = (paper_pooling, (SameTarget::Keep, symmetric, Logits::Dot), (10, 20, 5.0, 5.0), (Some(5), Some(5)));
        assert_eq!(switches(&config("run.preset = \"paper\"")), paper);
        let released = (
            (PoolingGradient::Frozen, PoolingRows::Unmasked, SequenceDropout::Uniform, Projection::Off),
            (SameTarget::Zero, CmclDirection::RowSums, Logits::Cosine),
            (20, 20, 5.0, 5.0),
            (Some(5), Some(0)),
        );
        assert_eq!(switches(&config("run.preset = \"released\"")), released);
    }

    #[test]
    fn tuned_changes_three_keys_of_the_defaults() {
        let mut expected = config("");
        expected.run.preset = Preset::Tuned;
        expected.model.projection = Projection::Off;
        expected.pretrain.learning_rate = 0.002;
        expected.finetune.weight_decay = 0.0;
        assert_eq!(config("run.preset = \"tuned\""), expected);
        assert_eq!(config("run.preset = \"tuned\"\nmodel.projection = \"on\"").model.projection, Projection::On);
    }

    #[test]
    fn single_keys_win_over_a_preset_and_the_resolved_configuration_gives_itself() {
        let mixed = config("run.preset = \"released\"\nmodel.logits = \"dot\"\npreprocess.item_core = 3");
        assert_eq!((mixed.model.logits, mixed.preprocess.item_core), (Logits::Dot, Some(3)));
        assert_eq!(mixed.model.projection, Projection::Off);
        assert_eq!(Config::parse(&mixed.to_toml().unwrap(), "x.toml", &[]).unwrap(), mixed);
    }
}
