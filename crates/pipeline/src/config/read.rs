//! Reads a pipeline file into a configuration in which every key has a value.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;
use toml::{Table, Value};

use super::catalog::{ModelCatalog, ModelType};
use super::refused::RefusedValue;
use super::{Config, dataset, renamed, training};
use crate::strict::{self, Assignment, ConfigError};

impl Config {
    /// Reads a pipeline file and applies `overrides`, each `section.key=value`. Returns the configuration and the warnings.
    pub fn load(path: &Path, overrides: &[String], models: &ModelCatalog) -> Result<(Self, Vec<String>), ConfigError> {
        let text = mp4sr_artifact::files::read_to_string(path)?;
        Self::parse(&text, &path.display().to_string(), overrides, models)
    }

    /// Parses the text of a pipeline file called `origin`. Returns the configuration and the warnings.
    pub fn parse(
        text: &str,
        origin: &str,
        overrides: &[String],
        models: &ModelCatalog,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| ConfigError::syntax(origin, &e))?;
        let renamed = models.renamed();
        let mut warnings = renamed::rename(&mut table, &renamed, origin)?;
        let mut set = BTreeMap::new();
        for text in overrides {
            let mut assignment = Assignment::parse(text)?;
            warnings.extend(renamed::rename_assignment(&mut assignment, &renamed));
            set.insert(assignment.key.clone(), text.clone());
            assignment.apply(&mut table)?;
        }
        dataset::times_as_text(&mut table);
        training::candidates_as_text(&mut table);
        let checked = strict::check(&table, &models.schema(), origin);
        let config = checked.and_then(|()| Self::of_table(table, origin, models));
        Ok((config.map_err(|error| error.of_override(&set))?, warnings))
    }

    /// The configuration in which every key except those of the model has its default.
    pub(crate) fn of_model(name: &str, models: &ModelCatalog) -> Result<Self, ConfigError> {
        let named = |name: &str| Value::Table(Table::from_iter([("name".to_owned(), Value::String(name.to_owned()))]));
        let table = Table::from_iter([("model".to_owned(), named(name)), ("dataset".to_owned(), named("default"))]);
        Self::of_table(table, "the defaults", models)
    }

    /// Fills in the values that a checked pipeline file leaves out.
    fn of_table(table: Table, origin: &str, models: &ModelCatalog) -> Result<Self, ConfigError> {
        let text = |section: &str, key: &str| Some(table.get(section)?.get(key)?.as_str()?.to_owned());
        let first = models.models().next().map_or("", ModelType::name);
        let model = text("model", "name").unwrap_or_else(|| first.to_owned());
        let preset = text("run", "preset").unwrap_or_default();
        let invalid = |reason: &str| ConfigError::invalid(origin, reason);
        let mut layered = Table::try_from(Self::default()).map_err(|e| invalid(&e.to_string()))?;
        let layers = models.layers(&model, &preset);
        let layers = layers.map_err(|e| invalid(&format!("the defaults of `{model}`: {}", e.message())))?;
        for layer in layers.into_iter().chain([table]) {
            strict::merge(&mut layered, layer);
        }
        let mut config: Self = Value::Table(layered).try_into().map_err(|e: toml::de::Error| invalid(e.message()))?;
        config.model.name = model;
        config.resolve_sections(models).map_err(|e| invalid(&e.to_string()))?;
        config.resolve();
        config.check(origin)?;
        if let Some(model) = models.model(&config.model.name) {
            let refused =
                |refused: RefusedValue| ConfigError::value(origin, &refused.key, &refused.value, &refused.allowed);
            model.check(&config).map_err(refused)?;
        }
        Ok(config)
    }

    /// Gives a value to every key of the sections that the model reads, and of the other model sections in the pipeline file.
    fn resolve_sections(&mut self, models: &ModelCatalog) -> serde_json::Result<()> {
        let read = models.shared().iter().map(|shared| shared.name).chain([self.model.name.as_str()]);
        let named: Vec<String> = read.map(str::to_owned).chain(self.model.sections.keys().cloned()).collect();
        for name in named {
            if let Some(section) = models.section(&name) {
                let own = self.model.sections.remove(&name).unwrap_or_else(|| Json::Object(serde_json::Map::new()));
                self.model.sections.insert(name, (section.resolve)(own)?);
            }
        }
        Ok(())
    }
}
