use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_tests::root;

#[test]
fn every_pipeline_that_we_ship_is_read() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join("pipelines")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "toml") {
            let (config, _) = Config::load(&path, &[], &ModelCatalog::unchecked()).unwrap_or_else(|e| panic!("{e}"));
            assert!(!config.source.interactions.is_empty(), "{}", path.display());
            names.push(path.file_stem().unwrap().to_string_lossy().into_owned());
        }
    }
    let expected = [
        "sample",
        "poetry",
        "pantry",
        "arts",
        "office",
        "ml-100k",
        "ml-100k-last12",
        "ml-1m-recent",
        "arts-titles",
        "gift-cards",
        "movielens-100k",
        "movielens-1m",
        "movielens-25m",
        "book-crossing",
        "steam",
        "yelp",
        "h-and-m",
        "microlens",
    ];
    for name in expected {
        assert!(names.iter().any(|known| known == name), "{name} is missing");
    }
}
