//! Presents the recipes of the models to the pipeline.

use std::sync::{Arc, LazyLock};

use mp4sr_models::{ModelSettings, RECIPES, Recipe, Refused, Samples, Section, TransformerConfig};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::{
    ModelCatalog, ModelType, PresetKeys, PretrainItems, RefusedValue, RenamedKey, SectionType, SharedSection,
};
use mp4sr_protocol::{COLD_EVENTS, Metric};

/// The section that all transformers read.
const TRANSFORMER: &str = "transformer";

static CATALOG: LazyLock<Arc<ModelCatalog>> = LazyLock::new(|| {
    let models = RECIPES.iter().map(|recipe| Box::new(RecipeEntry(recipe)) as Box<dyn ModelType>);
    let section = section_type(Section::of::<TransformerConfig>());
    let renamed = TransformerConfig::RENAMED.iter().map(renamed_key).collect();
    let transformer = SharedSection { name: TRANSFORMER, section, renamed };
    Arc::new(ModelCatalog::new(models.collect(), vec![transformer]))
});

/// All models of the workspace, for [`Config::load`].
pub fn model_catalog() -> &'static Arc<ModelCatalog> {
    &CATALOG
}

#[derive(Debug)]
struct RecipeEntry(&'static Recipe);

impl ModelType for RecipeEntry {
    fn name(&self) -> &str {
        self.0.name
    }

    fn title(&self) -> &str {
        self.0.title
    }

    fn summary(&self) -> &str {
        self.0.summary
    }

    fn reads_features(&self) -> bool {
        self.0.reads.features
    }

    fn reads_categories(&self) -> bool {
        !self.0.reads.categories.is_empty()
    }

    fn category_key(&self, config: &Config) -> Option<String> {
        let key = self.0.reads.category_key(config.model.own())?;
        Some(format!("model.{}.{key}", self.0.name))
    }

    fn shared_sections(&self) -> &[&'static str] {
        if self.0.reads.transformer { &[TRANSFORMER] } else { &[] }
    }

    fn section(&self) -> SectionType {
        section_type(self.0.section)
    }

    fn defaults(&self) -> &str {
        self.0.defaults
    }

    fn presets(&self) -> Vec<PresetKeys> {
        let keys = |preset: &mp4sr_models::Preset| PresetKeys {
            name: preset.name.to_owned(),
            summary: preset.summary.to_owned(),
            keys: preset.keys.to_owned(),
        };
        self.0.presets.iter().map(keys).collect()
    }

    fn grid(&self) -> &[&'static str] {
        self.0.grid
    }

    fn renamed(&self) -> Vec<RenamedKey> {
        self.0.renamed.iter().map(renamed_key).collect()
    }

    fn check(&self, config: &Config) -> Result<(), RefusedValue> {
        let metric = &config.train.metric;
        if metric.parse::<Metric>().is_err() {
            return Err(unknown_metric("train.metric", metric));
        }
        if let Some(name) = config.evaluate.metrics.iter().find(|name| name.parse::<Metric>().is_err()) {
            return Err(unknown_metric("evaluate.metrics", name));
        }
        let refused = |Refused { key, value, allowed }| RefusedValue { key, value, allowed };
        with_settings(config, |settings| {
            if self.0.reads.transformer {
                settings.transformer().map_err(|e| unreadable(&e)).and_then(|transformer| transformer.check())?;
            }
            if let Some(drawn) = settings.candidates.filter(|_| !self.0.supports.candidates) {
                let allowed =
                    format!("\"all\": {} ranks the target among all items, or draws its own negatives", self.0.title);
                return Err(Refused::new("finetune.candidates", &drawn, allowed));
            }
            (self.0.check)(settings)?;
            let unusable =
                |e: mp4sr_models::Error| Refused::new(&format!("model.{}", self.0.name), &"...", e.to_string());
            (self.0.phases)(settings).map(drop).map_err(unusable)
        })
        .map_err(refused)
    }

    fn phases(&self, config: &Config) -> Vec<&'static str> {
        let phases = with_settings(config, |settings| (self.0.phases)(settings));
        // `check` refuses the settings for which this fails.
        phases.unwrap_or_default().iter().map(|phase| phase.name).collect()
    }

    fn training_events(&self, config: &Config) -> usize {
        let phases = with_settings(config, |settings| (self.0.phases)(settings)).unwrap_or_default();
        let needed = phases.iter().map(|phase| match phase.samples {
            Samples::None => 0,
            Samples::Events => 1,
            Samples::Prefixes => 2,
            Samples::Sequences { at_least, .. } => at_least,
        });
        needed.max().unwrap_or(0)
    }

    fn phase_reads(&self, config: &Config, phase: &str, key: &str) -> bool {
        with_settings(config, |settings| (self.0.phase_reads)(settings, phase, key))
    }
}

/// Calls `work` with the part of the configuration that a recipe reads.
pub(crate) fn with_settings<T>(config: &Config, work: impl FnOnce(&ModelSettings<'_>) -> T) -> T {
    work(&ModelSettings {
        own: config.model.own(),
        transformer: config.model.section(TRANSFORMER),
        modalities: &config.model.modality_names(),
        pretrains: config.pretrain.enabled,
        // An invalid value is already an error when the configuration is read.
        candidates: config.finetune.drawn_candidates().unwrap_or_default(),
        pretrain_events: if config.pretrain.items == PretrainItems::Warm { COLD_EVENTS } else { 0 },
    })
}

fn unknown_metric(key: &str, name: &str) -> RefusedValue {
    let allowed = "R@K, N@K, Hit@K, P@K, MAP@K or MRR@K with K from 1, or MRR".to_owned();
    RefusedValue { key: key.to_owned(), value: format!("{name:?}"), allowed }
}

fn unreadable(error: &mp4sr_models::Error) -> Refused {
    Refused::new("model.transformer", &"...", error.to_string())
}

fn section_type(section: Section) -> SectionType {
    SectionType { schema: section.schema(), resolve: section.resolve }
}

fn renamed_key(renamed: &mp4sr_models::Renamed) -> RenamedKey {
    let text = |&(then, now): &(&str, &str)| (then.to_owned(), now.to_owned());
    RenamedKey {
        from: renamed.from.to_owned(),
        to: renamed.to.to_owned(),
        values: renamed.values.iter().map(text).collect(),
    }
}
