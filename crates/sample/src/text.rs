//! What the shop writes about an item: kind, brand, material, use and style, never what only the image shows.

use crate::random::Rng;
use crate::vocabulary::{BRAND_SENTENCES, BRANDS, FILLER_SENTENCES, KINDS, MATERIAL_SENTENCES, STYLES, USES};
use crate::world::Item;

/// The title, description paragraphs and bullet points of one item.
#[derive(Clone, Debug, Default)]
pub(crate) struct Texts {
    pub(crate) title: String,
    pub(crate) description: Vec<String>,
    pub(crate) features: Vec<String>,
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Writes the texts of `item`; `index` selects its random numbers.
pub(crate) fn write(seed: u64, index: usize, item: &Item) -> Texts {
    let mut rng = Rng::new(seed, "text", index);
    let kind = &KINDS[item.kind];
    let (brand, material) = (BRANDS[item.brand], kind.materials[item.material]);
    let (usage, style) = (&USES[item.usage], &STYLES[item.style]);
    let noun = rng.pick(&kind.nouns);
    let (n, m, u, s) = (capitalised(noun), capitalised(material), capitalised(usage.name), capitalised(style.name));
    let title = match rng.below(6) {
        0 => format!("{brand} {s} {n} for {u}, {m}"),
        1 => format!("{m} {n} by {brand} - {s} {u} Collection"),
        2 => format!("{brand} {u} {n}, {m}"),
        3 => format!("{s} {m} {n} | {brand}"),
        4 => format!("{brand} {n} ({s}, {m})"),
        _ => format!("{u} {n} in {s} Style, {brand}"),
    };

    let fill =
        |sentence: &str, noun: &str| sentence.replace("{n}", noun).replace("{m}", material).replace("{b}", brand);
    let mut sentences = vec![
        fill(rng.pick(&usage.sentences.each_ref().map(|s| *s)), rng.pick(&kind.nouns)),
        fill(rng.pick(&style.sentences.each_ref().map(|s| *s)), rng.pick(&kind.nouns)),
    ];
    if rng.chance(0.75) {
        sentences.push(fill(rng.pick(&MATERIAL_SENTENCES), rng.pick(&kind.nouns)));
    }
    if rng.chance(0.4) {
        sentences.push(fill(rng.pick(&BRAND_SENTENCES), rng.pick(&kind.nouns)));
    }
    if rng.chance(0.5) {
        sentences.push(rng.pick(&FILLER_SENTENCES).to_owned());
    }
    let count = sentences.len();
    rng.choose(&mut sentences, count);
    let description = if rng.chance(0.2) && sentences.len() > 2 {
        let tail = sentences.split_off(2);
        vec![sentences.join(" "), tail.join(" ")]
    } else {
        vec![sentences.join(" ")]
    };

    let mut features = Vec::new();
    if rng.chance(0.4) {
        features.push(format!("Material: {material}"));
        features.push(format!("Recommended for: {}", usage.name));
        if rng.chance(0.5) {
            features.push(format!("{s} design by {brand}"));
        }
    }
    Texts { title, description, features }
}

/// Puts entities and tags into a title.
pub(crate) fn mark_up_title(rng: &mut Rng, title: &str) -> String {
    match rng.below(4) {
        0 => format!("<b>{title}</b>"),
        1 => format!("{title} &amp; Gift Box"),
        2 => format!("&quot;{title}&quot;"),
        _ => format!("{title} &#8211; Buyer&#39;s Choice"),
    }
}

/// Puts entities and tags into a description.
pub(crate) fn mark_up_description(rng: &mut Rng, paragraphs: &mut [String]) {
    let style = rng.below(4);
    for paragraph in paragraphs {
        *paragraph = match style {
            0 => format!("<p>{}</p>", paragraph.replace(". ", ".</p><p>")),
            1 => format!("{}&nbsp;<br />", paragraph.replace(". ", ".<br />")),
            2 => format!("<span class=\"a-text-bold\">{paragraph}</span> Safe &amp; sound."),
            _ => format!("{paragraph} It&#39;s a &lt;classic&gt;&hellip;"),
        };
    }
}
