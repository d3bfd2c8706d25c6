//! Names of images in raw data: files that are there, or addresses to fetch; never a way out of the data folder.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use mp4sr_artifact::{Rejects, files};

use crate::Result;
use crate::rejects::{Fault, reject};
use crate::source::Ids;

const ENDINGS: [&str; 5] = ["jpg", "jpeg", "png", "webp", "gif"];

/// Whether a file's name is that of a sound.
pub fn is_sound_name(path: &Path) -> bool {
    path.extension().is_some_and(|end| ["flac", "wav"].iter().any(|known| end.eq_ignore_ascii_case(known)))
}

/// Whether a file's name is that of an image.
pub fn is_image_name(path: &Path) -> bool {
    path.extension().is_some_and(|end| ENDINGS.iter().any(|known| end.eq_ignore_ascii_case(known)))
}

/// A folder of images named by item id: `<id>.jpg`, then `<id>_2.jpg`, `<id>_3.png` and so on.
#[derive(Debug, Default)]
pub struct ImageFolder {
    of_item: HashMap<u32, Vec<String>>,
    /// Files that are named as an item's but lie elsewhere.
    refused: Rejects,
}

impl ImageFolder {
    /// Finds the images of the items with these ids.
    pub fn read(folder: &Path, item_ids: &Ids) -> Result<Self> {
        // The folder itself may be a link; whoever made the pipeline put it there.
        let real = folder.canonicalize().map_err(|e| mp4sr_artifact::Error::io("read", folder, e))?;
        let mut refused = Rejects::default();
        let mut found: HashMap<u32, Vec<(u64, String)>> = HashMap::new();
        for (at, path) in files::list(folder)?.into_iter().enumerate() {
            let Some((name, stem)) = path.to_str().zip(path.file_stem().and_then(|stem| stem.to_str())) else {
                continue;
            };
            if !is_image_name(&path) || !path.is_file() {
                continue;
            }
            // An item may itself be called `a_2`: then the file is its first, not the second of `a`.
            let place = item_ids.get_index_of(stem).map(|item| (item, 0)).or_else(|| {
                let (id, number) = stem.rsplit_once('_')?;
                Some((item_ids.get_index_of(id)?, number.parse().ok()?))
            });
            if let Some((item, number)) = place {
                if let Err(fault) = stays_in(&real, &path) {
                    reject(&mut refused, folder, at as u64 + 1, fault);
                    continue;
                }
                found.entry(item as u32).or_default().push((number, name.to_owned()));
            }
        }
        let sorted = |mut images: Vec<(u64, String)>| {
            images.sort();
            images.into_iter().map(|(_, name)| name).collect()
        };
        let of_item = found.into_iter().map(|(item, images)| (item, sorted(images))).collect();
        Ok(Self { of_item, refused })
    }

    /// The images of an item, if it has any.
    pub fn of(&self, item: usize) -> Option<&[String]> {
        self.of_item.get(&(item as u32)).map(Vec::as_slice)
    }

    /// Files that were not taken over, by reason.
    pub fn refused(&self) -> &Rejects {
        &self.refused
    }
}

/// A link in somebody's archive must not lead elsewhere.
fn stays_in(folder: &Path, path: &Path) -> std::result::Result<(), Fault> {
    if path.is_symlink() && !path.canonicalize().is_ok_and(|file| file.starts_with(folder)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        return Err(Fault::new("image is a link out of its folder", name));
    }
    Ok(())
}

/// Image names in one file of items.
#[derive(Debug)]
pub struct Resolver {
    /// Folders that a name may start from, as written and with links followed.
    folders: Vec<(PathBuf, PathBuf)>,
}

impl Resolver {
    /// Names start from the folder of the items' file, or from the data folder.
    pub fn new(items: &Path, data: &Path) -> Self {
        let mut folders: Vec<PathBuf> = items.parent().map(Path::to_owned).into_iter().collect();
        folders.push(data.to_owned());
        folders.dedup();
        let real = |folder: PathBuf| folder.canonicalize().map(|real| (folder, real)).ok();
        Self { folders: folders.into_iter().filter_map(real).collect() }
    }

    /// The address, or the path of the file as seen from the working directory.
    pub fn resolve(&self, name: &str) -> std::result::Result<String, Fault> {
        let name = name.trim();
        if let Some(scheme) = scheme(name) {
            return match scheme.to_ascii_lowercase().as_str() {
                "http" | "https" => Ok(name.to_owned()),
                _ => Err(Fault::new("image address is neither http nor https", name)),
            };
        }
        self.file(name, "image")
    }

    /// The path of a local file as seen from the working directory; `what` names it in messages. An address is refused: only
    /// images are downloaded.
    pub fn resolve_file(&self, name: &str, what: &str) -> std::result::Result<String, Fault> {
        let name = name.trim();
        match scheme(name) {
            Some(_) => Err(Fault::new(format!("{what} is an address, expected a local file"), name)),
            None => self.file(name, what),
        }
    }

    fn file(&self, name: &str, what: &str) -> std::result::Result<String, Fault> {
        let leaves = || Fault::new(format!("{what} path leaves the data folder"), name);
        let path = Path::new(name);
        if name.contains('\0') || !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
            return Err(leaves());
        }
        let found = self.folders.iter().map(|(folder, _)| folder.join(path)).find(|path| path.is_file());
        let found = found.ok_or_else(|| Fault::new(format!("{what} file is not there"), name))?;
        // A link in somebody's archive must not lead elsewhere either.
        let real = found.canonicalize().map_err(|_| leaves())?;
        if !self.folders.iter().any(|(_, folder)| real.starts_with(folder)) {
            return Err(leaves());
        }
        found.to_str().map(str::to_owned).ok_or_else(|| Fault::new(format!("{what} path is not UTF-8"), name))
    }
}

/// What stands before the colon of an address; a drive letter is none.
fn scheme(name: &str) -> Option<&str> {
    let (scheme, _) = name.split_once(':')?;
    let known = scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    known.then_some(scheme)
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
        let ids: Ids = ["a", "a_b", "b"].into_iter().map(Into::into).collect();
        let images = ImageFolder::read(folder.path(), &ids).unwrap();
        let names = |item| {
            let paths = images.of(item).unwrap_or_default().iter();
            paths.map(|path| Path::new(path).file_name().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(0), ["a.jpg", "a_2.webp", "a_10.png"]);
        assert_eq!(names(1), ["a_b.JPEG", "a_b_2.jpg"]);
        assert_eq!(names(2), Vec::<String>::new(), "ids are kept as they stand, letter case and all");
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
        let ids: Ids = ["a", "b", "c"].into_iter().map(Into::into).collect();
        for folder in [&folder, &linked] {
            let images = ImageFolder::read(folder, &ids).unwrap();
            let path = |name: &str| folder.join(name).display().to_string();
            assert_eq!(images.of(0).unwrap(), [path("a.jpg"), path("a_3.jpg")]);
            assert_eq!(images.of(1).unwrap(), [path("b.jpg")]);
            assert_eq!(images.of(2), None);
            let refused = &images.refused().0["image is a link out of its folder"];
            assert_eq!(images.refused().total(), 2);
            assert_eq!(refused.examples.iter().map(|e| e.found.as_str()).collect::<Vec<_>>(), ["a_2.jpg", "c.png"]);
        }
    }

    #[test]
    fn no_name_leads_out_of_the_data_folder() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret.jpg"), "x").unwrap();
        let data = tempfile::tempdir().unwrap();
        let shop = data.path().join("shop");
        fs::create_dir_all(shop.join("images")).unwrap();
        fs::write(shop.join("images/1.jpg"), "x").unwrap();
        fs::write(data.path().join("2.jpg"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret.jpg"), shop.join("link.jpg")).unwrap();
        std::os::unix::fs::symlink(data.path().join("2.jpg"), shop.join("inside.jpg")).unwrap();
        let resolver = Resolver::new(&shop.join("items.jsonl"), data.path());
        for good in ["images/1.jpg", "./images/1.jpg", "2.jpg", "shop/images/1.jpg", "inside.jpg"] {
            assert!(Path::new(&resolver.resolve(good).unwrap()).is_file(), "{good}");
        }
        assert_eq!(resolver.resolve(" https://x/y.jpg ").unwrap(), "https://x/y.jpg");
        let absolute = outside.path().join("secret.jpg").display().to_string();
        for (bad, reason) in [
            ("../2.jpg", "image path leaves the data folder"),
            ("images/../../../etc/passwd", "image path leaves the data folder"),
            (&absolute, "image path leaves the data folder"),
            ("link.jpg", "image path leaves the data folder"),
            ("images", "image file is not there"),
            ("gone.jpg", "image file is not there"),
            ("file:///etc/passwd", "image address is neither http nor https"),
            ("data:image/png;base64,AA", "image address is neither http nor https"),
        ] {
            assert_eq!(resolver.resolve(bad).unwrap_err().reason, reason, "{bad}");
        }
    }
}
