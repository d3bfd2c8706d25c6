//! Resolves the names of images and sounds in files of items.

use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mp4sr_artifact::{Downloads, Fingerprint, files};

use super::files::is_image_name;
use super::folder::ImageFolder;
use crate::Result;
use crate::rejects::Fault;

/// How images that files of items themselves contain are treated.
#[derive(Clone, Copy, Debug)]
pub enum EmbeddedImages<'a> {
    /// They are written to this folder.
    Stored(&'a Path),
    /// They are counted, and nothing is written.
    Counted,
    /// They are rejected.
    Refused,
}

/// Resolves the names of files in one file of items.
#[derive(Debug)]
pub struct Resolver<'a> {
    /// The folders that a name may be relative to, as written and with links resolved.
    folders: Vec<(PathBuf, PathBuf)>,
    embedded: EmbeddedImages<'a>,
}

/// The prefix of an image that a file of items contains, as in a data URL.
pub const DATA: &str = "data:";

/// Encodes the bytes of an image as a data URL.
pub fn data_url(image: &[u8]) -> String {
    format!("{DATA};base64,{}", STANDARD.encode(image))
}

impl<'a> Resolver<'a> {
    /// Names are relative to the folder of the items' file, to the data folder, or to that of the images.
    pub fn new(items: &Path, data: &Path, images: &ImageFolder, embedded: EmbeddedImages<'a>) -> Self {
        let mut folders: Vec<PathBuf> = items.parent().map(Path::to_owned).into_iter().collect();
        folders.push(data.to_owned());
        folders.extend(images.root.clone());
        folders.dedup();
        let real = |folder: PathBuf| folder.canonicalize().map(|real| (folder, real)).ok();
        Self { folders: folders.into_iter().filter_map(real).collect(), embedded }
    }

    /// The URL, or the path of the file as seen from the working directory. An image within the name is written to a file, which may fail.
    pub fn resolve(&self, name: &str) -> Result<std::result::Result<String, Fault>> {
        let name = name.trim();
        match (name.strip_prefix(DATA), self.embedded) {
            (Some(data), EmbeddedImages::Stored(store)) => stored(data, store),
            (Some(data), EmbeddedImages::Counted) => {
                Ok(decoded(data).map(|_| DATA.to_owned()).map_err(|why| not_an_image(why, data)))
            }
            _ => Ok(self.resolve_name(name)),
        }
    }

    /// Whether one of these names holds an image, or is that of an existing image file that is not among `known`.
    pub fn has_other_file(&self, names: &[String], known: &[String]) -> bool {
        let real = |path: &str| Path::new(path).canonicalize().ok();
        let is_known = |path: &str| known.iter().any(|own| real(own) == real(path));
        let is_other = |path: String| is_image_name(Path::new(&path)) && !is_known(&path);
        names.iter().map(|name| name.trim()).any(|name| match (name.strip_prefix(DATA), scheme(name)) {
            (Some(data), _) => !matches!(self.embedded, EmbeddedImages::Refused) && decoded(data).is_ok(),
            (None, Some(_)) => false,
            (None, None) => self.file(name, "image").is_ok_and(is_other),
        })
    }

    fn resolve_name(&self, name: &str) -> std::result::Result<String, Fault> {
        if let Some(scheme) = scheme(name) {
            return match scheme.to_ascii_lowercase().as_str() {
                "http" | "https" => Ok(name.to_owned()),
                _ => Err(Fault::new("image URL is neither http nor https", Downloads::shown(name))),
            };
        }
        self.file(name, "image")
    }

    /// The path of a local file as seen from the working directory; `what` names it in messages. A URL is refused: only
    /// images are downloaded.
    pub fn resolve_file(&self, name: &str, what: &str) -> std::result::Result<String, Fault> {
        let name = name.trim();
        match scheme(name) {
            Some(_) => Err(Fault::new(format!("{what} is a URL, expected a local file"), name)),
            None => self.file(name, what),
        }
    }

    /// The paths at which a local file of this name would be found, if there is none.
    pub fn missing(&self, name: &str) -> Vec<PathBuf> {
        let name = name.trim();
        let is_local = scheme(name).is_none() && !name.contains('\0') && !name.starts_with(DATA);
        let paths = if is_local { self.candidates(name) } else { Vec::new() };
        if paths.iter().any(|path| path.is_file()) { Vec::new() } else { paths }
    }

    fn candidates(&self, name: &str) -> Vec<PathBuf> {
        // Tables that were written on Windows separate the parts of paths by backslashes.
        let slashed = name.replace('\\', "/");
        let written = if slashed == name { vec![name] } else { vec![name, &slashed] };
        written.iter().flat_map(|name| self.folders.iter().map(move |(folder, _)| folder.join(name))).collect()
    }

    fn file(&self, name: &str, what: &str) -> std::result::Result<String, Fault> {
        let leaves = || Fault::new(format!("{what} path leaves the data folder"), name);
        let path = Path::new(name);
        let leaves_folder = |name: &str| name.split(['/', '\\']).any(|part| part == "..");
        if name.contains('\0')
            || leaves_folder(name)
            || !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
        {
            return Err(leaves());
        }
        let candidates = self.candidates(name);
        let Some(found) = candidates.iter().find(|path| path.is_file()) else {
            let is_denied =
                |path: &PathBuf| path.metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
            let problem =
                if candidates.iter().any(is_denied) { "cannot be read: permission denied" } else { "is missing" };
            return Err(Fault::new(format!("{what} file {problem}"), name));
        };
        // A link in a downloaded archive must not lead out of the folders either.
        let real = found.canonicalize().map_err(|_| leaves())?;
        if !self.folders.iter().any(|(_, folder)| real.starts_with(folder)) {
            return Err(leaves());
        }
        found.to_str().map(str::to_owned).ok_or_else(|| Fault::new(format!("{what} path is not UTF-8"), name))
    }
}

/// Writes the image in a data URL to a file that is named by a hash of its content.
fn stored(data: &str, store: &Path) -> Result<std::result::Result<String, Fault>> {
    let (image, extension) = match decoded(data) {
        Ok(image) => image,
        Err(why) => return Ok(Err(not_an_image(why, data))),
    };
    let hash = Fingerprint::of_bytes(&image);
    let name: String = hash.as_str().chars().filter(char::is_ascii_alphanumeric).collect();
    let path = store.join(format!("{name}.{extension}"));
    // An image of an earlier run may have been damaged since.
    if !path.is_file() || files::read(&path).ok().as_ref() != Some(&image) {
        files::create_dir_all(store)?;
        files::write_bytes(&path, &image)?;
    }
    let path = path.to_str().map(str::to_owned);
    Ok(path.ok_or_else(|| Fault::new("image data would have a path that is not UTF-8", data)))
}

fn not_an_image(why: &str, data: &str) -> Fault {
    Fault::new(format!("image data {why}"), data)
}

/// The image in a data URL and the extension of its file name, or why it is none.
fn decoded(data: &str) -> std::result::Result<(Vec<u8>, &'static str), &'static str> {
    let encoded = data.split_once(";base64,").and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok());
    let image = encoded.ok_or("is not base64")?;
    let extension = mp4sr_image::extension(&image).ok_or("is not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file")?;
    // Files keep the names that earlier releases gave them.
    let extension = if extension == "tiff" { "tif" } else { extension };
    Ok((image, extension))
}

/// The scheme of a URL; a drive letter is not a scheme.
fn scheme(name: &str) -> Option<&str> {
    let (scheme, _) = name.split_once(':')?;
    let known = scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    known.then_some(scheme)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::source::NumberedIds;

    #[test]
    fn images_that_a_table_holds_become_files() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("embedded");
        let resolver = Resolver::new(
            &folder.path().join("items.parquet"),
            folder.path(),
            &ImageFolder::default(),
            EmbeddedImages::Stored(&store),
        );
        let png = b"\x89PNG\r\n\x1a\nrest";
        let resolve = |name: &str| resolver.resolve(name).unwrap();
        let path = resolve(&data_url(png)).unwrap();
        assert!(is_image_name(Path::new(&path)) && Path::new(&path).starts_with(&store), "{path}");
        assert_eq!(fs::read(&path).unwrap(), png);
        assert_eq!(resolve(&format!("data:image/png;base64,{}", STANDARD.encode(png))).unwrap(), path);
        let avif = resolve(&data_url(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf")).unwrap();
        assert_eq!(Path::new(&avif).extension(), Some("avif".as_ref()), "{avif}");
        for (bad, reason) in [
            ("data:image/png;base64,?", "image data is not base64"),
            ("data:text/plain,x", "image data is not base64"),
            ("data:;base64,eHg=", "image data is not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file"),
        ] {
            assert_eq!(resolve(bad).unwrap_err().reason, reason, "{bad}");
        }
    }

    #[test]
    fn an_image_that_cannot_be_written_is_an_error_and_not_a_refused_image() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("embedded");
        fs::write(&store, "a file in place of the folder").unwrap();
        let items = folder.path().join("items.parquet");
        let resolver = Resolver::new(&items, folder.path(), &ImageFolder::default(), EmbeddedImages::Stored(&store));
        let error = resolver.resolve(&data_url(b"\x89PNG\r\n\x1a\nrest")).unwrap_err();
        assert!(error.to_string().contains("embedded"), "{error}");
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
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("3.jpg"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret.jpg"), folder.path().join("4.jpg")).unwrap();
        let images = ImageFolder::read(folder.path(), &NumberedIds::default()).unwrap();
        let resolver = Resolver::new(&shop.join("items.jsonl"), data.path(), &images, EmbeddedImages::Refused);
        for good in ["images/1.jpg", "./images/1.jpg", "2.jpg", "shop/images/1.jpg", "inside.jpg", "3.jpg"] {
            assert!(Path::new(&resolver.resolve(good).unwrap().unwrap()).is_file(), "{good}");
        }
        assert_eq!(resolver.resolve(" https://x/y.jpg ").unwrap().unwrap(), "https://x/y.jpg");
        let absolute = outside.path().join("secret.jpg").display().to_string();
        for (bad, reason) in [
            ("../2.jpg", "image path leaves the data folder"),
            ("images/../../../etc/passwd", "image path leaves the data folder"),
            (&absolute, "image path leaves the data folder"),
            ("link.jpg", "image path leaves the data folder"),
            ("4.jpg", "image path leaves the data folder"),
            ("images", "image file is missing"),
            ("gone.jpg", "image file is missing"),
            ("file:///etc/passwd", "image URL is neither http nor https"),
            ("data:image/png;base64,AA", "image URL is neither http nor https"),
        ] {
            assert_eq!(resolver.resolve(bad).unwrap().unwrap_err().reason, reason, "{bad}");
        }
    }
}
