//! Estimates the cost of a stage from the sizes of the dataset. The constants were measured on the machine of docs/performance.md. Other
//! machines, loads and data differ, so an estimate is a range.

use mp4sr_extract::{EncoderFacts, EncoderRole};
use mp4sr_pipeline::config::{FINETUNE, PRETRAIN};
use mp4sr_pipeline::{Context, StageName};

use crate::sizes::DatasetSizes;

/// The number of threads of the machine on which the constants were measured.
const THREADS: f64 = 2.0;
/// The factors for a faster or idle machine, and for a slower or busy one.
const FASTER: f64 = 0.4;
const SLOWER: f64 = 3.0;

/// Seconds per line of raw files, per byte of their text, and per sentence that is cleaned.
const LINE: f64 = 0.7e-6;
const BYTE: f64 = 4e-9;
const CLEANED: f64 = 5e-6;
/// Seconds per sentence and per byte of the encoder's weights: 1,242 sentences per second with the 90 MB of all-MiniLM-L6-v2.
const SENTENCE: f64 = 1.0 / (1242.0 * 90e6);
/// Seconds per image and per byte of the encoder's weights: 45 images per second with the 350 MB of the image tower of CLIP ViT-B/32; and
/// seconds to decode an image.
const IMAGE: f64 = 1.0 / (45.0 * 350e6);
const DECODED: f64 = 4e-3;
/// Seconds per training sample, per position of a sample, and per candidate item and dimension.
const SAMPLE: f64 = 60e-6;
const TOKEN: f64 = 8e-6;
const CANDIDATE: f64 = 0.26e-9;
/// Seconds per user, item and dimension in ranking.
const RANKED: f64 = 12e-12;
/// Seconds that every stage takes to start, and that a report takes.
const START: f64 = 0.06;
const REPORT: f64 = 0.5;

/// The memory in bytes of a process that has not read anything yet.
const PROCESS: f64 = 60e6;
/// The minimum share of sentences that must be encoded: sentences that items have in common or that are cached are not encoded again.
const DISTINCT: f64 = 0.05;

/// A lower and an upper bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

impl Range {
    fn around(number: f64) -> Self {
        Self { low: number * FASTER, high: number * SLOWER }
    }

    /// The range from the cost of the smallest sizes to the cost of the largest.
    fn between(low: f64, high: f64) -> Self {
        Self { low: low * FASTER, high: high * SLOWER }
    }

    fn plus(self, other: Self) -> Self {
        Self { low: self.low + other.low, high: self.high + other.high }
    }

    fn times(self, low: f64, high: f64) -> Self {
        Self { low: self.low * low, high: self.high * high }
    }
}

/// The estimated cost of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// The time in seconds.
    pub seconds: Range,
    /// The peak memory in bytes.
    pub memory: Range,
    /// An upper bound on the number of bytes that the stage writes.
    pub disk: f64,
    /// The time of one epoch in seconds, if the stage has epochs.
    pub epoch: Option<Range>,
    /// The smallest and the largest number of epochs.
    pub epochs: Option<(usize, usize)>,
}

/// The inputs of the estimates.
pub struct Estimator<'e> {
    /// The pipeline.
    pub context: &'e Context,
    /// The sizes of its dataset.
    pub sizes: DatasetSizes,
    /// Its encoders.
    pub encoders: &'e [EncoderFacts],
    /// The number of threads that the stages use.
    pub threads: usize,
}

impl Estimator<'_> {
    /// Estimates the cost of `stage`.
    pub fn cost(&self, stage: StageName) -> Cost {
        let cost = match stage {
            StageName::Preprocess => self.preprocess(),
            StageName::Extract => self.extract(),
            StageName::Pretrain => self.train(PRETRAIN),
            StageName::Finetune => self.train(FINETUNE),
            StageName::Evaluate => self.rank(self.context.config.evaluate.short_histories.len() + 2, 12.0),
            StageName::Recommend => {
                self.rank(1, 24.0 * self.context.config.recommend.top as f64 + 40.0 * self.sizes.length)
            }
            StageName::Report => self.report(),
        };
        // More threads help less and less.
        let speed = (self.threads as f64 / THREADS).powf(0.7);
        let faster = |range: Range| Range { low: range.low / speed, high: range.high / speed };
        let start = Range::around(START);
        Cost { seconds: faster(cost.seconds).plus(start), epoch: cost.epoch.map(faster), ..cost }
    }

    fn events(&self) -> (f64, f64) {
        self.sizes.events
    }

    fn items(&self) -> (f64, f64) {
        self.sizes.items
    }

    /// A number of the model's own section, or of the section that it shares with other transformers. `None` if it has no such key.
    fn model_key(&self, key: &str) -> Option<f64> {
        let model = &self.context.config.model;
        model.own()[key].as_f64().or_else(|| model.section("transformer")[key].as_f64())
    }

    fn width(&self) -> f64 {
        self.model_key("width").unwrap_or(64.0)
    }

    fn preprocess(&self) -> Cost {
        let DatasetSizes { raw_rows, raw_bytes, sentences, .. } = self.sizes;
        let (_, items) = self.items();
        let (_, events) = self.events();
        let seconds = LINE * raw_rows as f64 + CLEANED * sentences * items + BYTE * raw_bytes as f64;
        let memory = 90.0 * raw_rows as f64 + items * (300.0 + 200.0 * sentences);
        Cost {
            seconds: Range::around(seconds),
            memory: Range { low: PROCESS * 0.6, high: 3.0 * PROCESS + 1.5 * memory },
            disk: 14.0 * events + items * (100.0 + 120.0 * sentences) + 40.0 * self.sizes.users.1,
            ..Cost::default()
        }
    }

    fn extract(&self) -> Cost {
        let (least, most) = self.items();
        let of = |role: EncoderRole| self.encoders.iter().find(|encoder| encoder.role == role);
        let weights = |encoder: &EncoderFacts| encoder.weight_bytes.unwrap_or(500_000_000) as f64;
        let mut seconds = Range::default();
        let (mut memory, mut vectors) = (2.0 * PROCESS, 0.0);
        let extracted = self.context.config.extracted();
        if let Some(encoder) = of(EncoderRole::Sentences) {
            let mut rows = if extracted.text { self.sizes.sentences } else { 0.0 };
            rows +=
                if extracted.image { self.sizes.images * self.context.config.extract.image.words as f64 } else { 0.0 };
            // With a small encoder, tokenisation takes longer than the encoder.
            let each = (SENTENCE * weights(encoder)).max(30e-6);
            seconds = seconds.plus(Range::between(DISTINCT * each * rows * least, each * rows * most));
            memory += 2.0 * weights(encoder);
            vectors += rows * most * encoder.width.unwrap_or(384) as f64;
        }
        if let Some(encoder) = of(EncoderRole::Images) {
            let each = IMAGE * weights(encoder) * 0.6 + DECODED;
            seconds =
                seconds.plus(Range::between(0.4 * each * self.sizes.images * least, each * self.sizes.images * most));
            memory += 2.0 * weights(encoder);
            vectors += self.sizes.images * most * encoder.width.unwrap_or(512) as f64;
        }
        if let Some(encoder) = of(EncoderRole::Sounds) {
            memory += 2.0 * weights(encoder);
        }
        Cost {
            seconds,
            memory: Range { low: 0.3 * memory, high: 2.0 * memory + 6.0 * vectors + 3000.0 * most },
            // The cache keeps vectors in f32, and features are stored in half precision.
            disk: 6.5 * vectors,
            ..Cost::default()
        }
    }

    fn train(&self, phase: &str) -> Cost {
        let config = &self.context.config;
        let settings = config.phase(phase);
        let width = self.width();
        let limit = self.model_key("max_sequence_length").unwrap_or(50.0);
        // Every prefix of a user's training events is a sample, so a user with L events has L - 3 samples.
        let prefixes = (self.sizes.length - 3.0).max(0.2);
        let positions = (0.5 * (self.sizes.length - 2.0)).clamp(1.0, limit);
        let reads_features =
            self.context.models.model(&config.model.name).is_none_or(mp4sr_pipeline::config::ModelType::reads_features);
        let rows: f64 = if reads_features { self.sizes.sentences + self.sizes.images } else { 0.0 };
        let features = self.encoders.iter().filter_map(|encoder| encoder.width).max().unwrap_or(384) as f64;
        let by_width = (width / 64.0).max(0.25);
        let of_features = if reads_features { 1.0 + 2.0 * features / 768.0 } else { 0.5 };
        let each = (SAMPLE + TOKEN * positions * by_width) * of_features;
        let drawn = match phase {
            PRETRAIN if config.model.own()["nip_candidates"] == "all" => f64::INFINITY,
            PRETRAIN => 0.0,
            _ => config.finetune.drawn_candidates().ok().flatten().map_or(f64::INFINITY, |drawn| drawn as f64),
        };
        let epoch = |users: f64, items: f64| {
            let samples = (users * prefixes).min(self.events().1);
            let steps = (samples / settings.batch as f64).ceil();
            let candidates = (drawn + settings.batch as f64).min(items);
            let ranked = users * items * width * RANKED;
            samples * (each + CANDIDATE * candidates * width) + steps * 2e-3 + items * rows * 1e-6 + ranked
        };
        let epoch =
            Range::between(epoch(self.sizes.users.0, self.items().0), epoch(self.sizes.users.1, self.items().1));
        let is_trained = self.context.models.trains(config, phase) && !self.is_counted();
        if !is_trained {
            return Cost {
                seconds: Range::around(0.2),
                memory: Range { low: PROCESS * 0.3, high: 4.0 * PROCESS + 30.0 * self.events().1 },
                disk: 8.0 * self.items().1,
                ..Cost::default()
            };
        }
        // Early stopping waits for `patience` epochs after the best one, which is the first at the earliest.
        let epochs = ((settings.patience + 1).min(settings.epochs), settings.epochs);
        let parameters = self.parameters(width, reads_features, features);
        let tables = self.items().1 * width * if reads_features { 4.0 } else { 3.0 };
        let batch = settings.batch as f64 * positions * width * 4.0;
        let step = 40.0 * batch * 4.0 + 12.0 * tables * 4.0 + 16.0 * parameters;
        let stored = rows * self.items().1 * features * 2.0;
        Cost {
            seconds: epoch.times(epochs.0 as f64, epochs.1 as f64),
            memory: Range { low: PROCESS, high: 5.0 * PROCESS + 1.5 * step + stored + 40.0 * self.events().1 },
            // The weights, and during training a state with Adam's moments.
            disk: 16.0 * parameters,
            epoch: Some(epoch),
            epochs: Some(epochs),
        }
    }

    /// Whether the model only counts events and is not trained.
    fn is_counted(&self) -> bool {
        self.context.models.model(&self.context.config.model.name).is_some_and(|model| model.grid().is_empty())
    }

    /// An upper bound on the number of parameters.
    fn parameters(&self, width: f64, reads_features: bool, features: f64) -> f64 {
        let layers = self.model_key("layers").unwrap_or(2.0);
        let inner = self.model_key("feed_forward").unwrap_or(256.0);
        let experts = self.model_key("experts").unwrap_or(1.0);
        let of_layers = layers * (4.0 * width * width + 2.0 * width * inner);
        let of_features = if reads_features { 2.0 * features * (features + experts * width) } else { 0.0 };
        self.items().1 * width + of_layers + of_features + 50.0 * width
    }

    fn rank(&self, times: usize, bytes_of_a_user: f64) -> Cost {
        let width = self.width();
        let one = |users: f64, items: f64| {
            users * (items * width * RANKED + 20e-6) + items * 2e-6 * (1.0 + self.sizes.sentences)
        };
        let (users, items) = (self.sizes.users, self.items());
        let seconds = Range::between(one(users.0, items.0), one(users.1, items.1));
        Cost {
            seconds: seconds.times(times as f64, times as f64),
            memory: Range {
                low: PROCESS * 0.5,
                high: 4.0 * PROCESS
                    + items.1 * (width * 40.0 + 2.0 * self.sizes.sentences * 400.0)
                    + 40.0 * self.events().1
                    + users.1 * 3.0 * bytes_of_a_user,
            },
            disk: users.1 * bytes_of_a_user * times as f64,
            ..Cost::default()
        }
    }

    fn report(&self) -> Cost {
        let (_, users) = self.sizes.users;
        Cost {
            seconds: Range::around(REPORT + 10e-6 * users),
            memory: Range {
                low: PROCESS * 0.5,
                high: 5.0 * PROCESS + 60.0 * self.events().1 + 2000.0 * self.items().1,
            },
            disk: 20e6,
            ..Cost::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mp4sr_extract::encoders;
    use mp4sr_pipeline::{STAGES, StageArgs};
    use mp4sr_run::model_catalog;

    use super::*;

    fn context(more: &[&str]) -> Context {
        let pipeline = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/sample.toml");
        let overrides = more.iter().map(|&text| text.to_owned()).collect();
        let args =
            StageArgs { pipeline, artifacts: "artifacts".into(), overrides, quiet: true, ..StageArgs::default() };
        args.context_of_plan(model_catalog()).unwrap()
    }

    /// Checks the estimates against the seconds and MiB of each stage, measured one after the other in one process (docs/performance.md).
    fn expect(context: &Context, sizes: DatasetSizes, measured: [(f64, f64); 7]) {
        let encoders = encoders(context, false);
        let estimator = Estimator { context, sizes, encoders: &encoders, threads: 2 };
        let mut kept: f64 = 0.0;
        for (row, (seconds, memory)) in STAGES.iter().zip(measured) {
            let cost = estimator.cost(row.stage);
            let time = cost.seconds;
            assert!(time.low <= seconds && seconds <= time.high, "{}: {seconds} s, {time:?}", row.name);
            kept = kept.max(cost.memory.high);
            let bytes = memory * f64::from(1 << 20);
            assert!(cost.memory.low <= bytes && bytes <= kept, "{}: {memory} MiB, {:?}", row.name, cost.memory);
        }
    }

    #[test]
    fn measured_values_are_within_the_estimates() {
        let sample = [
            (0.188, 145.0),
            (2.193, 222.0),
            (45.0, 295.0),
            (123.9, 309.0),
            (0.671, 309.0),
            (0.361, 313.0),
            (0.298, 312.0),
        ];
        expect(&context(&[]), DatasetSizes::of_sample_world(), sample);
        let middle = DatasetSizes {
            basis: crate::sizes::SizeBasis::Dataset,
            users: (19_983.0, 19_983.0),
            items: (10_000.0, 10_000.0),
            events: (263_142.0, 263_142.0),
            length: 13.17,
            longest: 40,
            sentences: 5.0,
            images: 0.0,
            image_urls: 0.0,
            categories: 0,
            raw_rows: 309_729,
            raw_bytes: 9_560_000,
        };
        let measured = [
            (0.268, 175.0),
            (3.237, 186.0),
            (26.3, 380.0),
            (94.6, 478.0),
            (1.932, 478.0),
            (1.446, 498.0),
            (1.742, 490.0),
        ];
        let one_epoch = [
            "pretrain.epochs=1",
            "finetune.epochs=1",
            "pretrain.batch=1024",
            "finetune.batch=1024",
            "model.modalities=[{ name = \"text\" }]",
        ];
        expect(&context(&one_epoch), middle, measured);
    }

    #[test]
    fn a_wider_model_is_estimated_to_take_more_space_whatever_its_section() {
        let cost = |width: &str| {
            let context = context(&["model.name=lightgcn", width]);
            let encoders = encoders(&context, false);
            let sizes = DatasetSizes::of_sample_world();
            Estimator { context: &context, sizes, encoders: &encoders, threads: 2 }.cost(StageName::Finetune)
        };
        let (narrow, wide) = (cost("model.lightgcn.width=64"), cost("model.lightgcn.width=640"));
        assert!(narrow.memory.high < wide.memory.high && narrow.disk < wide.disk, "{narrow:?}, {wide:?}");
    }

    #[test]
    fn more_candidates_are_estimated_to_take_longer() {
        let seconds = |candidates: &str, stage| {
            let context = context(&[candidates]);
            let encoders = encoders(&context, false);
            let sizes = DatasetSizes { items: (50_000.0, 50_000.0), ..DatasetSizes::of_sample_world() };
            Estimator { context: &context, sizes, encoders: &encoders, threads: 2 }.cost(stage).seconds.low
        };
        let pretrain = |key| seconds(key, StageName::Pretrain);
        assert!(
            pretrain("model.mp4sr.nip_candidates=\"batch\"") < pretrain("model.mp4sr.nip_candidates=\"all\""),
            "pre-training"
        );
        let finetune = |key| seconds(key, StageName::Finetune);
        assert!(finetune("finetune.candidates=\"1000\"") < finetune("finetune.candidates=\"all\""), "fine-tuning");
    }

    #[test]
    fn more_work_is_estimated_to_take_longer() {
        let context = context(&[]);
        let encoders = encoders(&context, false);
        let cost = |sizes: DatasetSizes, stage| {
            Estimator { context: &context, sizes, encoders: &encoders, threads: 2 }.cost(stage)
        };
        let one = DatasetSizes::of_sample_world();
        let (users, items, events) = (one.users.0 * 10.0, one.items.0 * 10.0, one.events.0 * 10.0);
        let ten = DatasetSizes {
            users: (users, users),
            items: (items, items),
            events: (events, events),
            raw_rows: one.raw_rows * 10,
            raw_bytes: one.raw_bytes * 10,
            ..one
        };
        for row in &STAGES {
            let (small, large) = (cost(one, row.stage), cost(ten, row.stage));
            assert!(small.seconds.high < large.seconds.high && small.seconds.low < large.seconds.low, "{}", row.name);
            assert!(small.memory.high < large.memory.high, "{}", row.name);
            assert!(row.name == "report" || small.disk < large.disk, "{}", row.name);
        }
    }
}
