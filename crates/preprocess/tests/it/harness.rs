//! A temporary folder with raw files, a pipeline, and the program itself.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;

use mp4sr_artifact::{Items, Layout, PreprocessReport, Sequences, Users};

pub struct World {
    folder: tempfile::TempDir,
}

/// What the program wrote.
pub struct Dataset {
    pub sequences: Sequences,
    pub items: Items,
    pub users: Users,
    pub report: PreprocessReport,
}

impl World {
    /// A pipeline called `shop` with these sections, over an empty folder of raw files.
    pub fn new(sections: &str) -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(world.raw()).unwrap();
        std::fs::write(world.path("shop.toml"), format!("[dataset]\nname = \"shop\"\n{sections}")).unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn raw(&self) -> PathBuf {
        self.path("raw")
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.raw().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    pub fn write_gzip(&self, name: &str, content: &str) -> &Self {
        self.write(name, gzip(content))
    }

    pub fn run(&self, more: &[&str]) -> Output {
        run(&self.path("shop.toml"), &self.raw(), &self.path("artifacts"), more)
    }

    /// Runs, expects success, gives what it said on standard error.
    pub fn run_well(&self, more: &[&str]) -> String {
        let output = self.run(more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        said
    }

    /// Runs, expects exit code 1 and one line of error, gives that line.
    pub fn run_badly(&self, more: &[&str]) -> String {
        let output = self.run(more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{said}");
        assert!(!errors[0].contains("Error {") && !errors[0].contains("unwrap"), "{said}");
        errors[0].to_owned()
    }

    pub fn dataset(&self) -> Dataset {
        read(&Layout::new(&self.path("artifacts"), "shop", "default"))
    }
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

pub fn run(pipeline: &Path, data: &Path, artifacts: &Path, more: &[&str]) -> Output {
    let mut command = mp4sr_tests::command("preprocess");
    command.arg("--pipeline").arg(pipeline).arg("--data").arg(data).arg("--artifacts").arg(artifacts).args(more);
    command.output().unwrap()
}

pub fn gzip(content: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../..")
}
