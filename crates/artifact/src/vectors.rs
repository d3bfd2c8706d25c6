//! The cache of vectors on disk, by key: all datasets reuse what an encoder has computed once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;

use crate::features::{Values, view};
use crate::map::MappedFile;
use crate::tensors::{parse, write_views};
use crate::{Error, Fingerprint, Header, Result, files};

/// The number of rows of a shard, which is the most that a killed process loses.
const SHARD: usize = 4096;
const FORMAT: &str = "vectors";
const VERSION: u32 = 1;
const REMEDY: &str = "it was set aside, and its vectors are computed again";
const ENDING: &str = "safetensors";
/// The extension that a damaged shard is given.
const SET_ASIDE: &str = "damaged";

/// The key of a vector: the first 128 bits of the BLAKE3 hash of the content that was encoded.
pub type VectorKey = u128;

/// The key of the vector of this content.
pub fn vector_key(content: &[u8]) -> VectorKey {
    let mut bits = [0; 16];
    bits.copy_from_slice(&blake3::hash(content).as_bytes()[..16]);
    u128::from_le_bytes(bits)
}

/// The vectors of one encoder.
///
/// The cache is a folder of shards. Each of them is written whole, never changed, and named by a hash of its content, so two processes can
/// add vectors at the same time, and a killed process loses only the rows since its last shard. Values are read through the memory map.
pub struct VectorCache {
    folder: PathBuf,
    encoder: Fingerprint,
    width: usize,
    shards: Vec<Values<f32>>,
    locations: HashMap<VectorKey, (u32, u32)>,
    new_keys: Vec<VectorKey>,
    new_values: Vec<f32>,
    damaged: Vec<Error>,
}

impl VectorCache {
    /// Opens `folder`, which is created if it does not exist. A damaged shard is renamed and reported by [`Self::damaged`].
    pub fn open(folder: &Path, encoder: &Fingerprint, width: usize) -> Result<Self> {
        files::clean_folder(folder)?;
        let mut cache = Self::empty(folder, encoder, width);
        for path in shards_in(folder)? {
            match cache.read(&path) {
                Ok(()) => {}
                Err(error @ Error::Unusable { .. }) => {
                    files::rename(&path, &path.with_extension(SET_ASIDE))?;
                    cache.damaged.push(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(cache)
    }

    /// A cache without vectors that reads nothing from `folder` and creates it only in [`Self::flush`].
    pub fn empty(folder: &Path, encoder: &Fingerprint, width: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            encoder: encoder.clone(),
            width,
            shards: Vec::new(),
            locations: HashMap::new(),
            new_keys: Vec::new(),
            new_values: Vec::new(),
            damaged: Vec::new(),
        }
    }

    /// The errors of the shards that could not be used.
    pub fn damaged(&self) -> &[Error] {
        &self.damaged
    }

    /// The number of vectors.
    pub fn len(&self) -> usize {
        self.locations.len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.locations.is_empty()
    }

    /// Whether the cache has the vector of `key`.
    pub fn contains(&self, key: VectorKey) -> bool {
        self.locations.contains_key(&key)
    }

    /// The vector of `key`, if the cache has it.
    pub fn get(&self, key: VectorKey) -> Option<&[f32]> {
        let &(shard, row) = self.locations.get(&key)?;
        let values = self.shards.get(shard as usize).map_or(self.new_values.as_slice(), |shard| (**shard).as_ref());
        values.get(row as usize * self.width..(row as usize + 1) * self.width)
    }

    /// Adds vectors `[keys, width]`. A key that the cache already has keeps its vector.
    pub fn add(&mut self, keys: &[VectorKey], values: &[f32]) -> Result<()> {
        for (&key, vector) in keys.iter().zip(values.chunks_exact(self.width)) {
            let location = (self.shards.len() as u32, self.new_keys.len() as u32);
            if let Entry::Vacant(vacant) = self.locations.entry(key) {
                vacant.insert(location);
                self.new_keys.push(key);
                self.new_values.extend_from_slice(vector);
                if self.new_keys.len().is_multiple_of(SHARD) {
                    match self.flush() {
                        // The vectors stay in memory, and the caller decides whether they have to be written.
                        Err(error) if error.is_read_only() => {}
                        stored => stored?,
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the vectors that were added since the last shard. If this fails, the cache still has them, and the next call tries again.
    pub fn flush(&mut self) -> Result<()> {
        if self.new_keys.is_empty() {
            return Ok(());
        }
        let (keys, values) = (&self.new_keys, &self.new_values);
        let name =
            Fingerprint::of_bytes(&[bytemuck::cast_slice(keys), bytemuck::cast_slice::<f32, u8>(values)].concat());
        let path = self.folder.join(format!("{}.{ENDING}", &name.as_str()[..32]));
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            stage: "extract".to_owned(),
            items: self.encoder.clone(),
            settings: serde_json::Value::Null,
            inputs: std::collections::BTreeMap::new(),
        };
        let (rows, width) = (keys.len(), self.width);
        let views = [
            ("keys", (Dtype::I64, &[rows, 2][..], bytemuck::cast_slice(keys))),
            ("values", (Dtype::F32, &[rows, width][..], bytemuck::cast_slice(values))),
        ];
        files::create_dir_all(&self.folder)?;
        write_views(&path, &header, &views)?;
        let shard = open(&path, |items| *items == self.encoder, self.width, REMEDY)?;
        self.shards.push(shard.values);
        self.new_keys.clear();
        self.new_values.clear();
        Ok(())
    }

    /// Drops the vectors that have not been written.
    pub fn discard(&mut self) {
        for key in self.new_keys.drain(..) {
            self.locations.remove(&key);
        }
        self.new_values.clear();
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let shard = open(path, |items| *items == self.encoder, self.width, REMEDY)?;
        self.hold(shard);
        Ok(())
    }

    fn hold(&mut self, shard: VectorShard) {
        let index = self.shards.len() as u32;
        for (row, key) in shard.keys.into_iter().enumerate() {
            self.locations.entry(key).or_insert((index, row as u32));
        }
        self.shards.push(shard.values);
    }
}

/// The result of [`merge_vectors`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MergedVectors {
    /// The number of shards that were copied.
    pub new: usize,
    /// The number of shards that were there already.
    pub known: usize,
    /// The errors of shards that cannot be used, which were not copied.
    pub damaged: Vec<String>,
    /// The errors of damaged shards of the cache that is merged into, which were set aside.
    pub set_aside: Vec<String>,
    /// The number of vectors that differ from the cache's vector of the same content.
    pub differing: usize,
    /// The shard with the first of these.
    pub first_differing: Option<PathBuf>,
    /// The largest difference between two values of such vectors; NaN if one of them is not a number.
    pub largest_difference: f32,
}

impl MergedVectors {
    fn compare(&mut self, path: &Path, new: &[f32], known: &[f32]) {
        if new.iter().map(|value| value.to_bits()).eq(known.iter().map(|value| value.to_bits())) {
            return;
        }
        self.differing += 1;
        self.first_differing.get_or_insert_with(|| path.to_owned());
        for difference in new.iter().zip(known).map(|(new, known)| (new - known).abs()) {
            if difference.is_nan() || difference > self.largest_difference {
                self.largest_difference = difference;
            }
        }
    }
}

/// Copies the shards of one encoder's folder, whose vectors are `width` wide, into the folder `into` of another cache. Shards are named by
/// their content, so one that is there already is not copied again; it is read, and if it is damaged, it is set aside and copied again. The name of `into` is that
/// of the encoder, and shards of other encoders are not copied.
pub fn merge_vectors(from: &Path, into: &Path, width: usize) -> Result<MergedVectors> {
    let mut merged = MergedVectors::default();
    let name = into.file_name().unwrap_or_default().to_string_lossy();
    let is_own = |items: &Fingerprint| !name.is_empty() && items.as_str().starts_with(&*name);
    let mut cache: Option<VectorCache> = None;
    for path in shards_in(from)? {
        let shard = match open(&path, is_own, width, "copy it again, or leave it out") {
            Ok(shard) => shard,
            Err(error @ Error::Unusable { .. }) => {
                merged.damaged.push(error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        };
        let cache = match &mut cache {
            Some(cache) => cache,
            None => {
                let opened = VectorCache::open(into, &shard.encoder, width)?;
                merged.set_aside = opened.damaged.iter().map(ToString::to_string).collect();
                cache.insert(opened)
            }
        };
        // Opening the cache has set damaged shards aside, so a shard that is still there is complete.
        let to = into.join(path.file_name().unwrap_or_default());
        if to.exists() {
            merged.known += 1;
            continue;
        }
        for (key, new) in shard.keys.iter().zip((*shard.values).as_ref().chunks_exact(width)) {
            if let Some(known) = cache.get(*key) {
                merged.compare(&path, new, known);
            }
        }
        files::write_bytes(&to, &MappedFile::open(&path)?)?;
        cache.hold(shard);
        merged.new += 1;
    }
    Ok(merged)
}

/// A shard that was read.
struct VectorShard {
    encoder: Fingerprint,
    keys: Vec<VectorKey>,
    values: Values<f32>,
}

/// Reads a shard with vectors of `width` values of an encoder that `is_own` accepts.
fn open(path: &Path, is_own: impl Fn(&Fingerprint) -> bool, width: usize, remedy: &str) -> Result<VectorShard> {
    let map = std::sync::Arc::new(MappedFile::open(path)?);
    let wrong = |reason: String| Error::unusable(path, reason, remedy);
    let (header, file) = parse(path, &map, FORMAT, VERSION, remedy)?;
    if !is_own(&header.items) {
        return Err(wrong("it contains another encoder's vectors".to_owned()));
    }
    let tensor = |name: &str| file.tensor(name).map_err(|_| wrong(format!("tensor `{name}` is missing")));
    let (keys, values) = (tensor("keys")?, tensor("values")?);
    let rows = keys.shape().first().copied().unwrap_or(0);
    if keys.dtype() != Dtype::I64 || keys.shape() != [rows, 2] {
        return Err(wrong(format!("`keys`: expected I64 [rows, 2], found {:?} {:?}", keys.dtype(), keys.shape())));
    }
    if values.dtype() != Dtype::F32 || values.shape() != [rows, width] {
        let found = format!("{:?} {:?}", values.dtype(), values.shape());
        return Err(wrong(format!("`values`: expected F32 [{rows}, {width}], found {found}")));
    }
    let keys = keys.data().as_chunks::<16>().0.iter().map(|&bits| u128::from_le_bytes(bits)).collect();
    let start = values.data().as_ptr() as usize - map.as_ptr() as usize;
    let values = view(&map, start..start + values.data().len(), f32::from_le_bytes);
    Ok(VectorShard { encoder: header.items, keys, values })
}

fn shards_in(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(files::list(folder)?.into_iter().filter(|path| path.extension().is_some_and(|end| end == ENDING)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> Fingerprint {
        Fingerprint::of_bytes(b"encoder")
    }

    fn open(folder: &Path) -> VectorCache {
        VectorCache::open(folder, &encoder(), 2).unwrap()
    }

    #[test]
    fn flushed_vectors_are_found_when_the_cache_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = open(folder.path());
        first.add(&[1, 2, 1], &[1.0, 1.5, 2.0, 2.5, 9.0, 9.5]).unwrap();
        assert_eq!((first.len(), first.get(2)), (2, Some(&[2.0, 2.5][..])), "before it is written");
        assert!(open(folder.path()).is_empty());
        first.flush().unwrap();
        assert_eq!(first.get(1), Some(&[1.0, 1.5][..]), "the first of two counts");
        first.add(&[3], &[3.0, 3.5]).unwrap();
        let killed = open(folder.path());
        assert_eq!((killed.len(), killed.get(2), killed.get(3)), (2, Some(&[2.0, 2.5][..]), None));
        first.flush().unwrap();
        let mut both = open(folder.path());
        assert_eq!((both.len(), both.get(3)), (3, Some(&[3.0, 3.5][..])));
        both.flush().unwrap();
        assert_eq!(shards_in(folder.path()).unwrap().len(), 2, "nothing new, no shard");
    }

    #[test]
    fn vectors_that_could_not_be_written_are_still_those_of_their_keys() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cache");
        let mut cache = open(&folder);
        cache.add(&[1, 2], &[1.0, 1.5, 2.0, 2.5]).unwrap();
        std::fs::remove_dir(&folder).unwrap();
        std::fs::write(&folder, b"not a folder").unwrap();
        cache.flush().unwrap_err();
        cache.add(&[3], &[3.0, 3.5]).unwrap();
        let all = |cache: &VectorCache| [1, 2, 3].map(|key| cache.get(key).unwrap().to_vec());
        assert_eq!(all(&cache), [[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]);
        std::fs::remove_file(&folder).unwrap();
        cache.flush().unwrap();
        assert_eq!(all(&open(&folder)), [[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]);
    }

    #[test]
    fn discarded_vectors_are_computed_again_and_written_ones_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = open(folder.path());
        cache.add(&[1], &[1.0, 1.5]).unwrap();
        cache.flush().unwrap();
        cache.add(&[2, 3], &[2.0, 2.5, 3.0, 3.5]).unwrap();
        cache.discard();
        assert_eq!((cache.len(), cache.get(1), cache.get(2)), (1, Some(&[1.0, 1.5][..]), None));
        cache.add(&[3], &[4.0, 4.5]).unwrap();
        cache.flush().unwrap();
        let again = open(folder.path());
        assert_eq!((again.len(), again.get(2), again.get(3)), (2, None, Some(&[4.0, 4.5][..])));
    }

    #[test]
    fn leftovers_of_a_killed_run_are_removed_when_the_cache_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors.mp4sr-tmp-4999999999-1");
        files::write_bytes(&path, b"half").unwrap();
        assert!(open(folder.path()).damaged().is_empty());
        assert!(!path.exists());
    }

    #[test]
    fn a_full_shard_is_written_at_once_and_vectors_are_read_across_shards() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = open(folder.path());
        let keys: Vec<VectorKey> = (0..SHARD as u128 + 3).collect();
        let values: Vec<f32> = keys.iter().flat_map(|&key| [key as f32, -1.0]).collect();
        cache.add(&keys, &values).unwrap();
        assert_eq!(open(folder.path()).len(), SHARD);
        cache.flush().unwrap();
        for cache in [&cache, &open(folder.path())] {
            assert!(keys.iter().all(|&key| cache.get(key) == Some(&[key as f32, -1.0][..])));
        }
    }

    #[test]
    fn a_damaged_shard_is_named_set_aside_and_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = open(folder.path());
        cache.add(&[1], &[1.0, 1.5]).unwrap();
        cache.flush().unwrap();
        cache.add(&[2], &[2.0, 2.5]).unwrap();
        cache.flush().unwrap();
        let shard = shards_in(folder.path()).unwrap().remove(0);
        let whole = files::read(&shard).unwrap();
        for at in [0, 9, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            files::write_bytes(&shard, &bytes).unwrap();
            let cache = open(folder.path());
            assert_eq!(cache.len(), 1, "byte {at}");
            let message = cache.damaged()[0].to_string();
            assert!(message.contains(&shard.display().to_string()) && message.contains("computed again"), "{message}");
            assert!(!shard.exists() && open(folder.path()).damaged().is_empty());
        }
        files::write_bytes(&shard, &whole[..whole.len() / 2]).unwrap();
        assert_eq!((open(folder.path()).len(), shard.exists()), (1, false));
        files::write_bytes(&shard, &whole).unwrap();
        let other = VectorCache::open(folder.path(), &Fingerprint::of_bytes(b"other"), 2).unwrap();
        assert_eq!((other.len(), other.damaged().len()), (0, 2), "another encoder's");
    }

    /// Adds vectors to the folder `name` of an encoder's cache, and returns the path of their shard.
    fn add(root: &Path, name: &str, of: &Fingerprint, keys: &[VectorKey], values: &[f32]) -> PathBuf {
        let before = if root.join(name).exists() { shards_in(&root.join(name)).unwrap() } else { Vec::new() };
        let mut cache = VectorCache::open(&root.join(name), of, 2).unwrap();
        for (key, values) in keys.iter().zip(values.chunks(2)) {
            // Each process computes its own vectors, even for keys that others have.
            cache.locations.remove(key);
            cache.add(&[*key], values).unwrap();
        }
        cache.flush().unwrap();
        shards_in(&root.join(name)).unwrap().into_iter().find(|path| !before.contains(path)).unwrap()
    }

    #[test]
    fn merged_vectors_are_checked_against_their_encoder_and_existing_vectors() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = &encoder().as_str()[..32].to_owned();
        let (from, into) = (second.path().join(name), first.path().join(name));
        let known = add(first.path(), name, &encoder(), &[1, 2], &[1.0, 1.5, 2.0, 2.5]);
        let same = add(second.path(), name, &encoder(), &[1, 2], &[1.0, 1.5, 2.0, 2.5]);
        assert_eq!(known.file_name(), same.file_name());
        let new = add(second.path(), name, &encoder(), &[3], &[3.0, 3.5]);
        let merge = || merge_vectors(&from, &into, 2).unwrap();
        let expected = MergedVectors { new: 1, known: 1, ..MergedVectors::default() };
        assert_eq!(merge(), expected);
        assert_eq!(merge(), MergedVectors { new: 0, known: 2, ..expected });

        // A shard of another encoder, and one of another width.
        let foreign = add(second.path(), "other", &Fingerprint::of_bytes(b"other"), &[4], &[4.0, 4.5]);
        let moved = from.join(foreign.file_name().unwrap());
        files::rename(&foreign, &moved).unwrap();
        let merged = merge();
        assert_eq!((merged.new, merged.known, merged.damaged.len()), (0, 2, 1));
        assert!(merged.damaged[0].contains(&moved.display().to_string()), "{merged:?}");
        assert!(merged.damaged[0].contains("another encoder's vectors"), "{merged:?}");
        files::remove_if_present(&moved).unwrap();
        let merged = merge_vectors(&from, &into, 3).unwrap();
        assert!(merged.damaged.len() == 2 && merged.damaged[0].contains("expected F32"), "{merged:?}");

        // The cache's own shard was damaged: it is replaced.
        let mut bytes = files::read(&known).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        files::write_bytes(&known, &bytes).unwrap();
        let merged = merge();
        assert_eq!((merged.new, merged.known, merged.set_aside.len()), (1, 1, 1));
        assert!(merged.set_aside[0].contains(&known.display().to_string()), "{merged:?}");
        assert_eq!((open(&into).len(), open(&into).damaged().len()), (3, 0));

        // The same content with another vector.
        let other = add(second.path(), name, &encoder(), &[3, 5], &[3.0, 3.75, 5.0, 5.5]);
        let merged = merge();
        assert_eq!((merged.new, merged.known, merged.differing), (1, 2, 1));
        assert_eq!((merged.first_differing, merged.largest_difference), (Some(other), 0.25));
        assert_eq!(open(&into).len(), 4);
        assert!(new.exists(), "what is merged stays where it is");
    }
}
