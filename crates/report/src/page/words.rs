//! The words that CLIP chose: some images with their words, and the most frequent words.

use maud::{Markup, html};
use mp4sr_artifact::Items;
use mp4sr_pipeline::text::count;

use crate::thumbnail::{Thumbnail, thumbnail};
use crate::words::{Described, Words};

/// The number of words that are shown beside an image.
const SHOWN: usize = 15;
/// The maximum number of letters of a word or title that are shown, because a dictionary may contain anything.
const LETTERS: usize = 60;
/// The sizes of the letters, in percent.
const SMALLEST: f64 = 85.0;
const LARGEST: f64 = 220.0;

pub(super) fn section(words: &Words, items: &Items) -> Markup {
    html! {
        section #words {
            h2 { "Words that CLIP chose" }
            p {
                "Each image becomes those words of a dictionary that are nearest to it in CLIP's space; the sentence encoder "
                "reads them. " (count(words.items as u64)) " of " (count(items.len() as u64)) " items have such words."
            }
            @if !words.samples.is_empty() {
                p.soft {
                    "The best words for some images, with their cosine similarities. The images are evenly spaced over the items below; \
                     if an item "
                    "has several, the first is shown."
                }
                ul.seen { @for described in &words.samples { (sample(described, items)) } }
            }
            @if !words.frequent.is_empty() {
                h3 { "The " (words.frequent.len()) " most frequent words, with their number of items" }
                (cloud(&words.frequent))
            }
        }
    }
}

fn sample(described: &Described, items: &Items) -> Markup {
    let text = |column: &[String]| column.get(described.item).filter(|text| !text.is_empty()).cloned();
    let name = text(&items.titles).or_else(|| text(&items.ids)).unwrap_or_default();
    html! {
        li {
            div.card title=(short(&name)) {
                @match thumbnail(std::slice::from_ref(&described.image)) {
                    Thumbnail::Shown(url) => img src=(url) alt="" loading="lazy";,
                    _ => span.none { "no image to show" },
                }
                span.name { (short(&name)) }
            }
            ol { @for (word, score) in described.words.iter().take(SHOWN) {
                li { (short(word)) " " span.soft { (format!("{score:.2}")) } }
            } }
        }
    }
}

/// Formats words in a size that grows with their number of items.
fn cloud(frequent: &[(String, usize)]) -> Markup {
    let most = frequent.iter().map(|(_, items)| *items).max().unwrap_or(1) as f64;
    let size = |items: usize| (LARGEST * (items as f64 / most).sqrt()).max(SMALLEST);
    html! {
        p.cloud { @for (word, items) in frequent {
            span title={ (count(*items as u64)) " items" } style={ "font-size:" (format!("{:.0}", size(*items))) "%" } {
                (short(word)) sub { (count(*items as u64)) }
            } " "
        } }
    }
}

fn short(text: &str) -> String {
    let mut letters = text.chars();
    let mut start: String = letters.by_ref().take(LETTERS).collect();
    if letters.next().is_some() {
        start.push('…');
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_escaped_cut_and_larger_if_they_are_more_frequent() {
        let hostile = "<script>alert(1)</script>\" onclick=\"x";
        let items = Items {
            ids: vec!["<i>".into()],
            titles: vec![String::new()],
            sentences: vec![vec![]],
            images: vec![vec![]],
            categories: vec![vec![]],
            sounds: vec![vec![]],
        };
        let long = "w".repeat(100_000);
        let described = Described {
            item: 0,
            image: "Cargo.toml".into(),
            words: [hostile, &long].iter().map(|&word| (word.to_owned(), 0.256)).collect(),
        };
        let frequent = vec![(hostile.to_owned(), 2500), ("rare".to_owned(), 100), (long, 1)];
        let words = Words { samples: vec![described], frequent, items: 1 };
        let text = section(&words, &items).into_string();
        assert!(!text.contains("<script") && !text.contains("\" onclick") && !text.contains("<i>"), "{text}");
        assert!(text.contains("&lt;script&gt;") && text.contains("0.26") && text.contains("no image to show"));
        assert!(text.contains("title=\"2,500 items\" style=\"font-size:220%\""), "{text}");
        assert!(text.contains("title=\"100 items\" style=\"font-size:85%\""), "a fifth of 220 is too small to read");
        assert!(text.len() < 3000, "{}", text.len());
    }
}
