//! Reads what the stage wrote.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use mp4sr_artifact::{Items, Layout, PreprocessReport, Sequences, Users};
use mp4sr_tests::Project;

/// The dataset that the program wrote.
pub struct Dataset {
    pub sequences: Sequences,
    pub items: Items,
    pub users: Users,
    pub report: PreprocessReport,
}

/// A project whose pipeline `shop` has these sections.
pub fn shop_of(sections: &str) -> Project {
    Project::new("shop", sections)
}

/// The dataset of such a project.
pub fn dataset_of(project: &Project) -> Dataset {
    read(&Layout::new(&project.path(""), "shop", "default"))
}

pub fn read(layout: &Layout) -> Dataset {
    let report = std::fs::read(layout.statistics()).unwrap();
    Dataset {
        sequences: Sequences::read(&layout.sequences()).unwrap(),
        items: Items::read(&layout.items()).unwrap(),
        users: Users::read(&layout.users()).unwrap(),
        report: serde_json::from_slice(&report).unwrap(),
    }
}

/// Runs the stage on a pipeline of the repository.
pub fn run(pipeline: &Path, data: &Path, artifacts: &Path, more: &[&str]) -> Output {
    let mut command = mp4sr_tests::command("preprocess");
    command.arg("--pipeline").arg(pipeline).arg("--data").arg(data).arg("--artifacts").arg(artifacts).args(more);
    command.output().unwrap()
}

/// The ids of each user's items, in order.
pub fn histories(made: &Dataset) -> BTreeMap<String, Vec<String>> {
    let id = |item: &u32| made.items.ids[*item as usize - 1].clone();
    let history = |user: usize| made.sequences.of(user).iter().map(id).collect();
    made.users.ids.iter().enumerate().map(|(user, id)| (id.clone(), history(user))).collect()
}

/// Title, sentences and images of an item.
pub fn item(made: &Dataset, id: &str) -> (String, Vec<String>, Vec<String>) {
    let at = made.items.ids.iter().position(|known| known == id).unwrap_or_else(|| panic!("no item `{id}`"));
    (made.items.titles[at].clone(), made.items.sentences[at].clone(), made.items.images[at].clone())
}
