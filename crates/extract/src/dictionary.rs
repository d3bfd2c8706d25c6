//! The dictionary that image words are chosen from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mp4sr_artifact::files;

use crate::error::{Error, Result};

/// Words for what an image shows, built into the program.
const VISUAL: &str = include_str!("../../../data/words/visual.txt");
/// Words that mean nothing by themselves, built into the program.
const STOP: &str = include_str!("../../../data/words/stop.txt");
/// The number of items that must use a word of the texts for it to count.
const FEWEST_ITEMS: usize = 3;
/// The minimum number of letters in a word; shorter words are mostly units and abbreviations.
const SHORTEST: usize = 3;

/// Reads a dictionary: one word or phrase per line; `#` starts a comment; a repeated word counts once.
pub fn read(path: &Path) -> Result<Vec<String>> {
    let text = files::read_to_string(path)?;
    let words = lines(text.trim_start_matches('\u{feff}'));
    if words.is_empty() { Err(Error::EmptyDictionary(path.display().to_string())) } else { Ok(words) }
}

/// Builds a dictionary of the built-in visual words, followed by the `text_words` content words that most items of the dataset use, the
/// commonest first and equally common ones in alphabetical order.
pub fn build(sentences: &[Vec<String>], text_words: usize) -> Vec<String> {
    let stop: BTreeSet<String> = lines(STOP).into_iter().collect();
    let mut words = lines(VISUAL);
    let visual: BTreeSet<String> = words.iter().cloned().collect();
    let mut items: BTreeMap<String, usize> = BTreeMap::new();
    for texts in sentences {
        let distinct: BTreeSet<String> = texts.iter().flat_map(|text| content_words(text)).collect();
        for word in distinct {
            *items.entry(word).or_insert(0) += 1;
        }
    }
    let mut counted: Vec<(String, usize)> = items
        .into_iter()
        .filter(|(word, count)| *count >= FEWEST_ITEMS && !stop.contains(word) && !visual.contains(word))
        .collect();
    counted.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    words.extend(counted.into_iter().take(text_words).map(|(word, _)| word));
    words
}

/// Lower-case runs of letters; a run that touches a digit or an apostrophe is not a word.
fn content_words(text: &str) -> Vec<String> {
    let lowered = text.to_lowercase();
    lowered
        .split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '\u{2019}')
        .filter(|word| word.chars().count() >= SHORTEST && word.chars().all(char::is_alphabetic))
        .map(str::to_owned)
        .collect()
}

fn lines(text: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim().to_owned())
        .filter(|word| !word.is_empty() && seen.insert(word.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_content_words_join_the_visual_ones() {
        let item = |text: &str| vec![text.to_owned()];
        let texts = [
            item("The ceramic jug holds 500ml of coffee, 2.5 cups."),
            item("A ceramic jug and the coffee!"),
            item("Ceramic. Coffee; jug: it's the rare jug jug jug"),
        ];
        let words = build(&texts, 10);
        let built_in = lines(VISUAL).len();
        assert_eq!(&words[built_in..], ["coffee", "jug"], "ceramic is carried, the rest is rare or says nothing");
        assert!(words.contains(&"ceramic".to_owned()) && words.contains(&"striped".to_owned()));
        assert_eq!(build(&texts, 1).len(), built_in + 1);
    }

    #[test]
    fn a_custom_dictionary_may_have_comments_and_phrases_but_not_be_empty() {
        let folder = std::env::temp_dir().join(format!("mp4sr-dictionary-{}", std::process::id()));
        let path = folder.join("words.txt");
        files::write_bytes(&path, b"# mine\nred\nlong sleeve # two words\n\nred\n").unwrap();
        assert_eq!(read(&path).unwrap(), ["red", "long sleeve"]);
        files::write_bytes(&path, "\u{feff}red\r\nblue\r\n".as_bytes()).unwrap();
        assert_eq!(read(&path).unwrap(), ["red", "blue"], "a byte order mark is not part of a word");
        files::write_bytes(&path, b"# nothing\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("is empty"));
        files::remove_dir_if_present(&folder).unwrap();
    }
}
