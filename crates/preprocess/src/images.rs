//! Resolves the names of images in raw data to existing files or to URLs, and never to a file outside the data folder.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mp4sr_artifact::{Downloads, Fingerprint, Rejects, files};

use crate::rejects::{Fault, reject};
use crate::source::NumberedIds;
use crate::{Error, Result};

const ENDINGS: [&str; 9] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"];
/// The number of levels of nested folders that are searched.
const DEPTH: usize = 8;

/// Whether a file's name is that of a sound.
pub fn is_sound_name(path: &Path) -> bool {
    path.extension().is_some_and(|end| ["flac", "wav"].iter().any(|known| end.eq_ignore_ascii_case(known)))
}

/// Whether a file's name is that of an image.
pub fn is_image_name(path: &Path) -> bool {
    path.extension().is_some_and(|end| ENDINGS.iter().any(|known| end.eq_ignore_ascii_case(known)))
}

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
    root: Option<PathBuf>,
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

    /// The images of an item, if it has any. Those of a pattern that are not used are added to `refused`.
    pub fn of(&self, id: &str, refused: &mut Rejects) -> Result<Option<Vec<String>>> {
        let mut images: Vec<(u64, PathBuf)> = Vec::new();
        if let Some(pattern) = &self.pattern {
            images.extend(pattern.of(id, refused)?.into_iter().map(|path| (0, path)));
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

fn real(folder: &Path) -> Result<PathBuf> {
    Ok(folder.canonicalize().map_err(|e| mp4sr_artifact::Error::io("read", folder, e))?)
}

/// The image files in a folder and in folders below it, in the order of their names.
pub fn images_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    list(folder, DEPTH, false, &mut found)?;
    Ok(found)
}

/// The image files at all depths to which a pattern leads, also through links to folders.
pub fn images_of_pattern(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    list(folder, pattern.matches('/').count(), true, &mut found)?;
    Ok(found)
}

fn list(folder: &Path, depth: usize, follows_links: bool, found: &mut Vec<PathBuf>) -> Result<()> {
    for path in files::list(folder)? {
        if depth > 0 && path.is_dir() && (follows_links || !path.is_symlink()) {
            list(&path, depth - 1, follows_links, found)?;
        } else if is_image_name(&path) && files::is_file(&path)? {
            found.push(path);
        }
    }
    Ok(())
}

/// A part of a pattern of image paths.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PatternPart {
    Text(String),
    /// The id, or this many of its first characters, or of its last ones if the number is negative.
    Id(Option<i32>),
    /// Any text within a name.
    Any,
}

/// A pattern of image paths, such as `images/{id:3}/{id}.jpg`.
#[derive(Debug)]
pub struct ImagePattern {
    /// The folder before the first part that is not text.
    base: PathBuf,
    real: PathBuf,
    parts: Vec<PatternPart>,
    /// The names of the images in each folder that has been listed.
    listed: RefCell<HashMap<PathBuf, Vec<String>>>,
}

impl ImagePattern {
    /// Whether `source.images` is a pattern and not a folder.
    pub fn is_in(text: &str) -> bool {
        text.contains(['{', '*'])
    }

    /// The folder before the first part of a pattern that is not text.
    pub fn base(data: &Path, text: &str) -> PathBuf {
        let fixed = &text[..text.find(['{', '*']).unwrap_or(text.len())];
        data.join(fixed.rsplit_once('/').map_or("", |(folder, _)| folder))
    }

    /// Reads a pattern whose paths start in `data`.
    pub fn parse(data: &Path, text: &str) -> Result<Self> {
        let refuse = |what: &str| {
            Error::Setting(format!(
                "`source.images` = {text:?} {what}; expected a pattern such as \"images/{{id:3}}/{{id}}.jpg\", in which `{{id:3}}` is the \
                 first three characters of the id"
            ))
        };
        let base = Self::base(data, text);
        let start = text.find(['{', '*']).unwrap_or(text.len());
        let start = text[..start].rfind('/').map_or(0, |at| at + 1);
        let mut parts = Vec::new();
        let mut rest = &text[start..];
        if rest.split('/').any(|folder| folder == "..") {
            return Err(refuse("has `..` after the first part that is not text"));
        }
        while let Some(at) = rest.find(['{', '*']) {
            parts.push(PatternPart::Text(rest[..at].to_owned()));
            if rest[at..].starts_with('*') {
                parts.push(PatternPart::Any);
                rest = &rest[at + 1..];
                continue;
            }
            let end = rest[at..].find('}').ok_or_else(|| refuse("has `{` without `}`"))?;
            let inner = &rest[at + 1..at + end];
            parts.push(match inner.split_once(':') {
                None if inner == "id" => PatternPart::Id(None),
                Some(("id", count)) => {
                    let count: i32 = count.parse().map_err(|_| refuse("has no number after `id:`"))?;
                    PatternPart::Id(Some(count))
                }
                _ => return Err(refuse(&format!("has `{{{inner}}}`, and only `id` is allowed there"))),
            });
            rest = &rest[at + end + 1..];
        }
        parts.push(PatternPart::Text(rest.to_owned()));
        if !parts.iter().any(|part| matches!(part, PatternPart::Id(_))) {
            return Err(refuse("does not name the id"));
        }
        let folder_part = |part: &PatternPart| matches!(part, PatternPart::Text(text) if text.contains('/'));
        let any = parts.iter().position(|part| *part == PatternPart::Any);
        if any.is_some_and(|any| parts[any..].iter().any(folder_part)) {
            return Err(refuse("has `*` in the name of a folder"));
        }
        Ok(Self { real: real(&base)?, base, parts, listed: RefCell::default() })
    }

    /// The existing files of an item. Links out of the folder are added to `refused`.
    fn of(&self, id: &str, refused: &mut Rejects) -> Result<Vec<PathBuf>> {
        // An id must not lead to another folder.
        if id.contains(['/', '\\', '\0']) || id == ".." {
            return Ok(Vec::new());
        }
        let mut wanted = vec![String::new()];
        for part in &self.parts {
            let last = wanted.last_mut();
            match (part, last) {
                (PatternPart::Text(text), Some(last)) => last.push_str(text),
                (PatternPart::Id(count), Some(last)) => last.push_str(piece(id, *count)),
                (PatternPart::Any, _) => wanted.push(String::new()),
                (_, None) => {}
            }
        }
        // Neither may a piece of it, such as the first two characters of `..a`.
        if Path::new(&wanted.concat())
            .components()
            .any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
        {
            return Ok(Vec::new());
        }
        let mut found = if wanted.len() == 1 { self.at(&wanted[0])? } else { self.matching(&wanted)? };
        found.retain(|path| match stays_in(&self.real, path) {
            Ok(()) => true,
            Err(fault) => {
                reject(refused, &self.base, 0, fault);
                false
            }
        });
        Ok(found)
    }

    /// The existing file of this name or, if the name has no image extension, the files of this name with any image extension.
    fn at(&self, name: &str) -> Result<Vec<PathBuf>> {
        let path = self.base.join(name);
        let paths: Vec<PathBuf> = if is_image_name(&path) {
            vec![path]
        } else {
            ENDINGS.iter().map(|ending| self.base.join(format!("{name}.{ending}"))).collect()
        };
        let mut found = Vec::new();
        for path in paths {
            if files::is_file(&path)? {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// The files whose names have these pieces in order, with anything between them.
    fn matching(&self, pieces: &[String]) -> Result<Vec<PathBuf>> {
        let (folder, start) = pieces[0].rsplit_once('/').map_or(("", pieces[0].as_str()), |split| split);
        let folder = self.base.join(folder);
        let mut listed = self.listed.borrow_mut();
        if !listed.contains_key(&folder) {
            listed.insert(folder.clone(), names_in(&folder)?);
        }
        let names = &listed[&folder];
        let first = names.partition_point(|name| name.as_str() < start);
        let begins = names[first..].iter().take_while(|name| name.starts_with(start));
        let mut found = Vec::new();
        for name in begins.filter(|name| has_pieces(&name[start.len()..], &pieces[1..])) {
            let path = folder.join(name);
            if files::is_file(&path)? {
                found.push(path);
            }
        }
        Ok(found)
    }
}

/// The names of the images in a folder, sorted; none if the folder does not exist.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    let paths = if files::is_dir(folder)? { files::list(folder)? } else { Vec::new() };
    let name = |path: &PathBuf| path.file_name()?.to_str().map(str::to_owned);
    let mut names: Vec<String> = paths.iter().filter(|path| is_image_name(path)).filter_map(name).collect();
    names.sort();
    Ok(names)
}

/// Whether a text contains the pieces in order and ends with the last one.
fn has_pieces(text: &str, pieces: &[String]) -> bool {
    let mut rest = text;
    for (at, piece) in pieces.iter().enumerate() {
        if at + 1 == pieces.len() {
            return rest.ends_with(piece.as_str());
        }
        let Some(found) = rest.find(piece.as_str()) else { return false };
        rest = &rest[found + piece.len()..];
    }
    true
}

/// The first characters of an id, the last ones if `count` is negative, or all of them.
fn piece(id: &str, count: Option<i32>) -> &str {
    let Some(count) = count else { return id };
    let length = id.chars().count();
    let number = (count.unsigned_abs() as usize).min(length);
    let at = if count < 0 { length - number } else { number };
    let at = id.char_indices().nth(at).map_or(id.len(), |(at, _)| at);
    if count < 0 { &id[at..] } else { &id[..at] }
}

/// Refuses a link out of the folder, such as a downloaded archive may contain.
fn stays_in(folder: &Path, path: &Path) -> std::result::Result<(), Fault> {
    if path.is_symlink() && !path.canonicalize().is_ok_and(|file| file.starts_with(folder)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        return Err(Fault::new("image is a link that leads out of its folder", name));
    }
    Ok(())
}

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
        images.of(id, &mut Rejects::default()).unwrap()
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
            assert_eq!(images.of("c", &mut refused).unwrap(), None);
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
            let message = images.of("2", &mut Rejects::default()).unwrap_err().to_string();
            assert!(message.contains("images/2"), "{message}");
        }
    }

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
