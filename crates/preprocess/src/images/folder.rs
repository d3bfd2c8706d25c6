//! Finds the images of items by the names of the files.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use mp4sr_artifact::Rejects;

use super::files::{images_in, real, stays_in};
use super::pattern::ImagePattern;
use crate::Result;
use crate::rejects::{Fault, reject};
use crate::source::NumberedIds;

/// Images named by item id, in a folder or in the folders below it: `<id>.jpg`, then `<id>_2.jpg`, `<id>_3.png` and so on; or in one folder
/// per item; or at the paths that a pattern gives.
#[derive(Debug, Default)]
pub struct ImageFolder {
    /// Files by their name without the extension.
    by_name: BTreeMap<String, Vec<PathBuf>>,
    /// Files by the part of their name before `_` and a number.
    by_numbered_name: HashMap<String, Vec<(u64, PathBuf)>>,
    /// Files by their folder, for data with a folder per item.
    by_folder: HashMap<String, Vec<PathBuf>>,
    pattern: Option<ImagePattern>,
    /// The folder, if the images were found in one.
    pub(super) root: Option<PathBuf>,
    /// Names that are ids as a whole, even if they end with a number.
    ids: HashSet<String>,
    /// Files that have the name of an item's image but are not used, by reason.
    refused: Rejects,
    /// A message about where the images were found.
    notice: Option<String>,
}

impl ImageFolder {
    /// Finds the images in a folder and in the folders below it. Those of the folder itself are found by their names, and replace those below
    /// it that have the same name; those below it by their names or by their folders.
    pub fn read(folder: &Path, item_ids: &NumberedIds) -> Result<Self> {
        // The folder itself may be a link, because the author of the pipeline chose it.
        let real = real(folder)?;
        let mut found = Self { root: Some(folder.to_owned()), ..Self::default() };
        let (own, mut below): (Vec<PathBuf>, Vec<PathBuf>) =
            images_in(folder)?.into_iter().partition(|path| path.parent() == Some(folder));
        let stem = |path: &Path| path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        let parent = |path: &Path| path.parent()?.file_name()?.to_str().map(str::to_owned);
        let is_item = |name: &str| item_ids.find(name).is_some();
        let numbered = |stem: &str| {
            let (id, number) = stem.rsplit_once('_')?;
            Some((id.to_owned(), number.parse::<u64>().ok()?))
        };
        let names_item = |path: &PathBuf| {
            stem(path).is_some_and(|stem| is_item(&stem) || numbered(&stem).is_some_and(|(id, _)| is_item(&id)))
        };
        let of_name = below.iter().filter(|path| names_item(path)).count();
        let of_folder = below.iter().filter(|path| parent(path).is_some_and(|parent| is_item(&parent))).count();
        let by_folder = of_folder > of_name;
        if !by_folder {
            let names: HashSet<String> = own.iter().filter_map(|path| stem(path)).collect();
            below.retain(|path| stem(path).is_none_or(|stem| !names.contains(&stem)));
        }
        if !below.is_empty() {
            let each = if by_folder { ", one for each item" } else { "" };
            let also = if own.is_empty() { "" } else { "in it and " };
            found.notice = Some(format!("the images of `{}` are {also}in folders below it{each}", folder.display()));
        }
        let files = own.into_iter().map(|path| (path, false)).chain(below.into_iter().map(|path| (path, by_folder)));
        for (at, (path, by_folder)) in files.enumerate() {
            let Some(stem) = stem(&path).filter(|_| path.to_str().is_some()) else { continue };
            let owner = if by_folder { parent(&path) } else { Some(stem.clone()) };
            let belongs = if by_folder { owner.as_deref().is_some_and(is_item) } else { names_item(&path) };
            if let Err(fault) = stays_in(&real, &path) {
                if belongs {
                    reject(&mut found.refused, folder, at as u64 + 1, fault);
                }
                continue;
            }
            if by_folder {
                found.by_folder.entry(owner.unwrap_or_default()).or_default().push(path);
                continue;
            }
            if let Some((id, number)) = numbered(&stem) {
                if is_item(&stem) {
                    found.ids.insert(stem.clone());
                }
                found.by_numbered_name.entry(id).or_default().push((number, path.clone()));
            }
            found.by_name.entry(stem).or_default().push(path);
        }
        found.refuse_ambiguous(folder);
        Ok(found)
    }

    /// Refuses files of the same name in several folders, because they may be images of different things.
    fn refuse_ambiguous(&mut self, folder: &Path) {
        let mut refused = std::mem::take(&mut self.refused);
        let mut unclear: HashSet<PathBuf> = HashSet::new();
        self.by_name.retain(|name, paths| {
            let clear = paths.iter().all(|path| path.parent() == paths[0].parent());
            if !clear {
                reject(&mut refused, folder, 0, Fault::new("images of the same name in several folders", name));
                unclear.extend(paths.drain(..));
            }
            clear
        });
        self.by_numbered_name.values_mut().for_each(|paths| paths.retain(|(_, path)| !unclear.contains(path)));
        self.refused = refused;
    }

    /// The images at the paths that a pattern gives.
    pub fn by_pattern(pattern: ImagePattern) -> Self {
        Self { pattern: Some(pattern), ..Self::default() }
    }

    /// The images of an item, if it has any; `item_ids` are the ids of the items with events, or of new items. Those of a pattern that are not used are added to `refused`.
    pub fn of(&self, id: &str, item_ids: &NumberedIds, refused: &mut Rejects) -> Result<Option<Vec<String>>> {
        let mut images: Vec<(u64, PathBuf)> = Vec::new();
        if let Some(pattern) = &self.pattern {
            images.extend(pattern.of(id, item_ids, refused)?.into_iter().map(|path| (0, path)));
        }
        images.extend(self.by_name.get(id).into_iter().flatten().map(|path| (0, path.clone())));
        images.extend(self.by_folder.get(id).into_iter().flatten().map(|path| (0, path.clone())));
        // An item may itself be called `a_2`. Then `a_2.jpg` is its first image, and not the second one of `a`.
        let is_item =
            |path: &Path| path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| self.ids.contains(stem));
        let numbered = self.by_numbered_name.get(id).into_iter().flatten();
        images.extend(numbered.filter(|(_, path)| !is_item(path)).cloned());
        images.sort();
        let names: Vec<String> = images.iter().filter_map(|(_, path)| path.to_str().map(str::to_owned)).collect();
        Ok((!names.is_empty()).then_some(names))
    }

    /// Files of the folder that are not used, by reason.
    pub fn refused(&self) -> &Rejects {
        &self.refused
    }

    /// A message about where the images were found.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_by_item_id_come_in_the_order_of_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.jpg", "a_10.png", "a_2.webp", "a_x.jpg", "a.txt", "a_b.JPEG", "a_b_2.jpg", "z.jpg", "B.png"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let ids: NumberedIds = ["a", "a_b", "b"].into_iter().map(Into::into).collect();
        let images = ImageFolder::read(folder.path(), &ids).unwrap();
        let names = |item: &str| {
            let paths = of(&images, item).unwrap_or_default();
            paths
                .iter()
                .map(|path| Path::new(path).file_name().unwrap().to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names("a"), ["a.jpg", "a_2.webp", "a_10.png"]);
        assert_eq!(names("a_b"), ["a_b.JPEG", "a_b_2.jpg"]);
        assert_eq!(names("b"), Vec::<String>::new(), "ids are kept as they stand, letter case and all");
    }

    fn of(images: &ImageFolder, id: &str) -> Option<Vec<String>> {
        images.of(id, &NumberedIds::default(), &mut Rejects::default()).unwrap()
    }

    fn names_of(images: &ImageFolder, folder: &Path, id: &str) -> Vec<String> {
        let paths = of(images, id).unwrap_or_default();
        paths.iter().map(|path| Path::new(path).strip_prefix(folder).unwrap().display().to_string()).collect()
    }

    fn written(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        folder
    }

    #[test]
    fn images_in_folders_below_are_found_by_name_or_by_the_folder_of_each_item() {
        let folder = written(&[
            "010/0108.jpg",
            "010/0108_2.png",
            "011/0110.bmp",
            "train/twice.jpg",
            "test/twice.jpg",
            "012/012.jpg",
            "013/x.jpg",
        ]);
        let ids: NumberedIds = ["0108", "0110", "twice", "013"].into_iter().map(Into::into).collect();
        let images = ImageFolder::read(folder.path(), &ids).unwrap();
        assert_eq!(names_of(&images, folder.path(), "0108"), ["010/0108.jpg", "010/0108_2.png"]);
        assert_eq!(names_of(&images, folder.path(), "0110"), ["011/0110.bmp"]);
        assert_eq!(names_of(&images, folder.path(), "012"), ["012/012.jpg"], "items without events have images too");
        assert_eq!(of(&images, "013"), None, "a folder of several items is none of an item");
        assert_eq!(of(&images, "twice"), None);
        assert_eq!(images.refused().0["images of the same name in several folders"].count, 1);
        assert!(images.notice().unwrap().contains("are in folders below it"));
        let names: Vec<String> = (0..9).flat_map(|at| [format!("a/i{at}.jpg"), format!("b/i{at}.jpg")]).collect();
        let folder = written(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let ids: NumberedIds = (0..9).map(|at| format!("i{at}")).map(Into::into).collect();
        let images = ImageFolder::read(folder.path(), &ids).unwrap();
        let refused = &images.refused().0["images of the same name in several folders"];
        let found: Vec<&str> = refused.examples.iter().map(|example| example.found.as_str()).collect();
        assert_eq!((refused.count, found), (9, vec!["i0", "i1", "i2"]), "the examples are the same in every run");
        let folder = written(&["a/2.jpg", "a/1.jpg", "b/1.tiff", "c/note.txt"]);
        let ids: NumberedIds = ["a", "b", "c"].into_iter().map(Into::into).collect();
        let images = ImageFolder::read(folder.path(), &ids).unwrap();
        assert_eq!(names_of(&images, folder.path(), "a"), ["a/1.jpg", "a/2.jpg"]);
        assert_eq!((names_of(&images, folder.path(), "b"), of(&images, "c")), (vec!["b/1.tiff".to_owned()], None));
    }

    #[test]
    fn images_in_a_folder_and_below_it_are_found_together() {
        let ids = || ["1", "2", "3", "4"].into_iter().map(Into::into).collect::<NumberedIds>();
        let folder = written(&["logo.png", "1.jpg", "small/1.jpg", "small/2.jpg", "a/b/c/d/3.jpg"]);
        let images = ImageFolder::read(folder.path(), &ids()).unwrap();
        let names = ["1", "2", "3"].map(|id| names_of(&images, folder.path(), id));
        assert_eq!(names, [["1.jpg"], ["small/2.jpg"], ["a/b/c/d/3.jpg"]]);
        assert!(
            images.refused().0.is_empty() && images.notice().unwrap().contains("are in it and in folders below it")
        );
        let folder = written(&["logo.png", "1.jpg", "2.jpg", "3/a.jpg", "4/a.jpg", "4/b.jpg"]);
        let images = ImageFolder::read(folder.path(), &ids()).unwrap();
        assert_eq!(names_of(&images, folder.path(), "4"), ["4/a.jpg", "4/b.jpg"]);
        assert_eq!(["1", "2"].map(|id| names_of(&images, folder.path(), id)), [["1.jpg"], ["2.jpg"]]);
        let folder = written(&["1.jpg", "small/1_2.jpg", "large/1_2.jpg"]);
        let images = ImageFolder::read(folder.path(), &ids()).unwrap();
        assert_eq!(names_of(&images, folder.path(), "1"), ["1.jpg"]);
        assert_eq!(images.refused().0["images of the same name in several folders"].count, 1);
    }

    #[test]
    fn a_pattern_names_the_path_of_each_image() {
        let folder = written(&[
            "images/010/0108.jpg",
            "images/08/0108_a.png",
            "images/08/0108_b.png",
            "images/08/01081_a.png",
            "secret/1.jpg",
        ]);
        let of = |pattern: &str, id: &str| {
            let images = ImageFolder::by_pattern(ImagePattern::parse(folder.path(), pattern).unwrap());
            names_of(&images, folder.path(), id)
        };
        assert_eq!(of("images/{id:3}/{id}.jpg", "0108"), ["images/010/0108.jpg"]);
        assert_eq!(of("images/{id:3}/{id}", "0108"), ["images/010/0108.jpg"], "any ending");
        assert_eq!(of("images/{id:-2}/{id}_*", "0108"), ["images/08/0108_a.png", "images/08/0108_b.png"]);
        assert_eq!(of("images/{id:-2}/{id}_*b.png", "0108"), ["images/08/0108_b.png"]);
        assert_eq!(of("{id}/1.jpg", "secret"), ["secret/1.jpg"]);
        // `01081_a.png` is an image of item `01081`, if there is one.
        let pattern = ImagePattern::parse(folder.path(), "images/08/{id}*").unwrap();
        let ids: NumberedIds = ["0108", "01081"].into_iter().map(Into::into).collect();
        let count = |id: &str, ids: &NumberedIds| pattern.of(id, ids, &mut Rejects::default()).unwrap().len();
        assert_eq!((count("0108", &ids), count("01081", &ids)), (2, 1));
        assert_eq!(count("0108", &NumberedIds::default()), 3);
        let pattern = ImagePattern::parse(folder.path(), "images/08/*{id}_a.png").unwrap();
        let ids: NumberedIds = ["81", "1081"].into_iter().map(Into::into).collect();
        let count = |id: &str| pattern.of(id, &ids, &mut Rejects::default()).unwrap().len();
        assert_eq!((count("81"), count("1081")), (0, 1));
        assert!(of("images/{id:3}/{id}.jpg", "gone").is_empty());
        assert!(of("images/{id}", "../secret/1.jpg").is_empty());
        assert!(of("images/{id:2}/secret/{id:-1}.jpg", "..1").is_empty());
        assert!(of("images/{id:2}/secret/{id:-1}*", "..1").is_empty());
        for (pattern, expected) in [
            ("images/*.jpg", "does not name the id"),
            ("images/{name}.jpg", "only `id` is allowed there"),
            ("images/{id.jpg", "has `{` without `}`"),
            ("images/{id:x}.jpg", "has no number after"),
            ("images/*/{id}.jpg", "has `*` in the name of a folder"),
            ("images/{id:1}/../{id}.jpg", "has `..` after"),
        ] {
            let message = ImagePattern::parse(folder.path(), pattern).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn no_link_leads_out_of_the_folder_of_images() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("images");
        fs::create_dir(&folder).unwrap();
        for name in ["secret.jpg", "images/a.jpg", "images/b.jpg"] {
            fs::write(outside.path().join(name), "x").unwrap();
        }
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, folder.join(name)).unwrap();
        link("../secret.jpg", "a_2.jpg");
        link("a.jpg", "a_3.jpg");
        link("/etc/passwd", "c.png");
        link("/etc/passwd", "of-no-item.png");
        link("gone.jpg", "b_2.jpg");
        // A pipeline may name a link to the folder.
        let linked = outside.path().join("linked");
        std::os::unix::fs::symlink(&folder, &linked).unwrap();
        let ids: NumberedIds = ["a", "b", "c"].into_iter().map(Into::into).collect();
        for folder in [&folder, &linked] {
            let images = ImageFolder::read(folder, &ids).unwrap();
            let path = |name: &str| folder.join(name).display().to_string();
            assert_eq!(of(&images, "a").unwrap(), [path("a.jpg"), path("a_3.jpg")]);
            assert_eq!(of(&images, "b").unwrap(), [path("b.jpg")]);
            assert_eq!(of(&images, "c"), None);
            let refused = &images.refused().0["image is a link that leads out of its folder"];
            assert_eq!(images.refused().total(), 2);
            assert_eq!(refused.examples.iter().map(|e| e.found.as_str()).collect::<Vec<_>>(), ["a_2.jpg", "c.png"]);
        }
        for pattern in ["images/{id}.png", "images/{id}", "images/{id}.*"] {
            let images = ImageFolder::by_pattern(ImagePattern::parse(outside.path(), pattern).unwrap());
            let mut refused = Rejects::default();
            assert_eq!(images.of("c", &ids, &mut refused).unwrap(), None);
            assert_eq!(refused.0["image is a link that leads out of its folder"].examples[0].found, "c.png");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_not_one_without_images() {
        let folder = written(&["images/1/1.jpg", "images/3"]);
        // A link to itself cannot be read by anyone, whatever the permissions.
        std::os::unix::fs::symlink("2", folder.path().join("images/2")).unwrap();
        for pattern in ["images/{id}/{id}.jpg", "images/{id}/{id}", "images/{id}/*.jpg"] {
            let images = ImageFolder::by_pattern(ImagePattern::parse(folder.path(), pattern).unwrap());
            assert_eq!(names_of(&images, folder.path(), "1"), ["images/1/1.jpg"]);
            assert_eq!([of(&images, "3"), of(&images, &"3".repeat(300))], [None, None]);
            let message = images.of("2", &NumberedIds::default(), &mut Rejects::default()).unwrap_err().to_string();
            assert!(message.contains("images/2"), "{message}");
        }
    }
}
