//! Patterns of image paths, such as `images/{id:3}/{id}.jpg`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use mp4sr_artifact::{Rejects, files};

use super::files::{ENDINGS, is_image_name, real, stays_in};
use crate::rejects::reject;
use crate::source::NumberedIds;
use crate::{Error, Result};

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

    /// The existing files of an item. Links out of the folder are added to `refused`. With `*`, a file may have the name of several items'
    /// images; it is that of the one with the longest id.
    pub(super) fn of(&self, id: &str, item_ids: &NumberedIds, refused: &mut Rejects) -> Result<Vec<PathBuf>> {
        // An id must not lead to another folder.
        if id.contains(['/', '\\', '\0']) || id == ".." {
            return Ok(Vec::new());
        }
        let wanted = self.pieces(id);
        // Neither may a piece of it, such as the first two characters of `..a`.
        if Path::new(&wanted.concat())
            .components()
            .any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
        {
            return Ok(Vec::new());
        }
        let mut found = if wanted.len() == 1 { self.at(&wanted[0])? } else { self.matching(&wanted)? };
        if wanted.len() > 1 {
            found.retain(|path| !self.is_of_longer_id(path, id, item_ids));
        }
        found.retain(|path| match stays_in(&self.real, path) {
            Ok(()) => true,
            Err(fault) => {
                reject(refused, &self.base, 0, fault);
                false
            }
        });
        Ok(found)
    }

    /// The texts between the parts that may be any text.
    fn pieces(&self, id: &str) -> Vec<String> {
        let mut pieces = vec![String::new()];
        for part in &self.parts {
            let last = pieces.last_mut();
            match (part, last) {
                (PatternPart::Text(text), Some(last)) => last.push_str(text),
                (PatternPart::Id(count), Some(last)) => last.push_str(piece(id, *count)),
                (PatternPart::Any, _) => pieces.push(String::new()),
                (_, None) => {}
            }
        }
        pieces
    }

    /// Whether a file that has the name of an image of `id` also has that of an image of an item whose id contains `id`, as `a_2_b.jpg` has for
    /// `{id}_*.jpg` if there are items `a` and `a_2`.
    fn is_of_longer_id(&self, path: &Path, id: &str, item_ids: &NumberedIds) -> bool {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
        let is_named_for = |other: &str| {
            let pieces = self.pieces(other);
            let (folder, start) = folder_and_start(&pieces[0]);
            path.parent() == Some(&self.base.join(folder))
                && name.strip_prefix(start).is_some_and(|rest| has_pieces(rest, &pieces[1..]))
        };
        let bounds: Vec<usize> = name.char_indices().map(|(at, _)| at).chain([name.len()]).collect();
        let parts = bounds
            .iter()
            .flat_map(|&from| bounds.iter().filter(move |&&to| to > from + id.len()).map(move |&to| &name[from..to]));
        let mut longer = parts.filter(|part| part.contains(id) && item_ids.find(part).is_some());
        longer.any(is_named_for)
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
        let (folder, start) = folder_and_start(&pieces[0]);
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

/// Splits the first piece of a path into a folder and the start of a name in it.
fn folder_and_start(piece: &str) -> (&str, &str) {
    piece.rsplit_once('/').unwrap_or(("", piece))
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
