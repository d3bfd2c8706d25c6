//! Distinguishes HTML from text that only looks like it: `C++ <vector>` has no tag, and `Pencil&notebook` no entity.

/// Elements of HTML, including those of earlier versions, whose names do not occur in angle brackets for other reasons.
const ELEMENTS: [&str; 62] = [
    "abbr",
    "acronym",
    "applet",
    "aside",
    "b",
    "basefont",
    "bdi",
    "bdo",
    "blockquote",
    "br",
    "cite",
    "col",
    "colgroup",
    "dd",
    "del",
    "dfn",
    "dir",
    "div",
    "dl",
    "dt",
    "em",
    "embed",
    "fieldset",
    "figcaption",
    "font",
    "footer",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "html",
    "iframe",
    "img",
    "ins",
    "kbd",
    "li",
    "meta",
    "nav",
    "noscript",
    "ol",
    "p",
    "pre",
    "samp",
    "span",
    "strike",
    "strong",
    "sub",
    "sup",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "tr",
    "tt",
    "u",
    "ul",
    "wbr",
];
/// Elements whose names are also words or names of types. They count as tags only if they have attributes or a partner, which is the
/// matching start or end tag.
const WORDS: [&str; 61] = [
    "a", "address", "area", "article", "audio", "base", "big", "body", "button", "canvas", "caption", "center", "code",
    "data", "datalist", "details", "dialog", "figure", "form", "frame", "frameset", "head", "header", "hgroup", "i",
    "input", "label", "legend", "link", "main", "map", "mark", "menu", "meter", "object", "optgroup", "option",
    "output", "param", "picture", "progress", "q", "rp", "rt", "ruby", "s", "script", "search", "section", "select",
    "slot", "small", "source", "style", "summary", "template", "textarea", "time", "title", "track", "var",
];
/// Attributes that have no value.
const FLAGS: [&str; 14] = [
    "async", "autoplay", "checked", "clear", "compact", "controls", "defer", "disabled", "hidden", "loop", "noshade",
    "nowrap", "readonly", "selected",
];
/// Entities that are often written without their semicolon.
const BARE: [&str; 7] = ["amp", "copy", "gt", "lt", "nbsp", "quot", "reg"];
/// The longest name of an entity, `CounterClockwiseContourIntegral;`.
const ENTITY: usize = 32;

/// The greatest distance of a tag's partner in bytes, because longer searches from each of many tags would take too long.
const NEAR: usize = 4096;

/// The text with `and` in place of every `&` that does not begin an entity, and with `less` in place of every `<` that begins neither a tag
/// nor a comment.
pub fn without_lookalikes(text: &str, less: &str, and: &str) -> String {
    let source = HtmlSource::new(text);
    let mut out = String::with_capacity(text.len() + 16);
    let mut at = 0;
    while let Some(next) = text[at..].find(['<', '&']).map(|found| at + found) {
        out.push_str(&text[at..next]);
        let length = match text.as_bytes()[next] {
            b'&' => entity(&text[next..]),
            _ => source.tag(next),
        };
        match length {
            Some(length) => {
                out.push_str(&text[next..next + length]);
                at = next + length;
            }
            None => {
                out.push_str(if text.as_bytes()[next] == b'&' { and } else { less });
                at = next + 1;
            }
        }
    }
    out.push_str(&text[at..]);
    out
}

/// The length of the entity at the start of a text. A name without its semicolon is an entity only if it is often written that way and the
/// word ends with it; otherwise the `&` means "and".
fn entity(text: &str) -> Option<usize> {
    let is_bare = |name: &&&str| {
        let rest = text[1..].strip_prefix(**name);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '='))
    };
    if let Some(name) = BARE.iter().find(is_bare).filter(|name| !text[1 + name.len()..].starts_with(';')) {
        return Some(1 + name.len());
    }
    let end = text.bytes().take(ENTITY + 2).position(|byte| byte == b';')?;
    let name = &text[1..end];
    let is_digits = |digits: &str, radix: u32| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    let is_entity = match name.strip_prefix('#') {
        Some(number) => match number.strip_prefix(['x', 'X']) {
            Some(digits) => is_digits(digits, 16),
            None => is_digits(number, 10),
        },
        None => name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric()),
    };
    is_entity.then_some(end + 1)
}

/// A text in lower case, of the same length in bytes, and the last complete ends of comments, scripts and style sheets in it. They show
/// whether a search for an end would find one; without them, a text with many starts would be searched to its end for each of them.
struct HtmlSource {
    lower: String,
    last_comment: Option<usize>,
    last_script: Option<usize>,
    last_style: Option<usize>,
}

impl HtmlSource {
    fn new(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        let closed = &lower[..lower.rfind('>').unwrap_or(0)];
        let (last_script, last_style) = (closed.rfind("</script"), closed.rfind("</style"));
        Self { last_comment: lower.rfind("-->"), last_script, last_style, lower }
    }

    /// The length of the tag, the comment or the script at `at`.
    fn tag(&self, at: usize) -> Option<usize> {
        let text = &self.lower[at..];
        let is_ahead = |last: Option<usize>| last.is_some_and(|last| last > at);
        if text.starts_with("<!--") {
            return if is_ahead(self.last_comment) { text.find("-->").map(|end| end + 3) } else { None };
        }
        if text.starts_with("<!doctype") || text.starts_with("<?xml") {
            return near(text).find('>').map(|end| end + 1);
        }
        let closes = text[1..].starts_with('/');
        let name_at = 1 + usize::from(closes);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == ':';
        let length = text[name_at..].find(|c: char| !is_name(c)).unwrap_or(text.len() - name_at);
        let name = &text[name_at..name_at + length];
        // Word processors write elements with a prefix.
        let prefixed = name.split_once(':').is_some_and(|(prefix, name)| !prefix.is_empty() && !name.is_empty());
        let is_word = WORDS.contains(&name);
        if !(prefixed || is_word || ELEMENTS.contains(&name)) {
            return None;
        }
        let (end, has_attributes) = attributes(near(text), name_at + length)?;
        let last = match name {
            "script" => self.last_script,
            "style" => self.last_style,
            _ => None,
        };
        if !closes && matches!(name, "script" | "style") {
            if !is_ahead(last) {
                return has_attributes.then_some(end);
            }
            let close = text.find(&format!("</{name}"))?;
            return text[close..].find('>').map(|end| close + end + 1);
        }
        let has_partner = || {
            if closes {
                let start = self.lower.floor_char_boundary(at.saturating_sub(NEAR));
                has_start(&self.lower[start..at], name)
            } else {
                near(&text[end..]).contains(&format!("</{name}"))
            }
        };
        (!is_word || has_attributes || has_partner()).then_some(end)
    }
}

fn near(text: &str) -> &str {
    &text[..text.floor_char_boundary(NEAR)]
}

/// Whether a text contains a start tag of this name.
fn has_start(text: &str, name: &str) -> bool {
    let start = format!("<{name}");
    text.match_indices(&start).any(|(at, _)| {
        let next = text[at + start.len()..].chars().next();
        next.is_some_and(|c| c == '>' || c == '/' || c.is_whitespace())
    })
}

/// The end of the tag whose name ends at `at`, and whether it has attributes with values; `None` if anything else follows.
fn attributes(text: &str, mut at: usize) -> Option<(usize, bool)> {
    let mut has_values = false;
    loop {
        let rest = &text[at..];
        let blank = rest.len() - rest.trim_start().len();
        let rest = rest.trim_start();
        at += blank;
        if rest.starts_with('>') {
            return Some((at + 1, has_values));
        }
        if rest.starts_with("/>") {
            return Some((at + 2, has_values));
        }
        if blank == 0 && !has_values {
            return None;
        }
        let name =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-_:.".contains(c))).filter(|length| *length > 0)?;
        let after = rest[name..].trim_start();
        let Some(value) = after.strip_prefix('=') else {
            if !FLAGS.contains(&&rest[..name]) {
                return None;
            }
            at += name;
            continue;
        };
        let value = value.trim_start();
        let length = match value.chars().next()? {
            quote @ ('"' | '\'') => value[1..].find(quote)? + 2,
            _ => value.find(|c: char| c == '>' || c.is_whitespace())?,
        };
        has_values = true;
        at = text.len() - value.len() + length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_sorted_and_distinct() {
        for names in [&ELEMENTS[..], &WORDS[..], &FLAGS[..]] {
            assert!(names.is_sorted_by(|a, b| a < b));
        }
        assert!(ELEMENTS.iter().all(|name| !WORDS.contains(name)));
    }

    #[test]
    fn tags_and_entities_are_distinguished_from_lookalikes() {
        for (text, expected) in [
            ("<p>a</p>", "<p>a</p>"),
            ("a <b and c> d", "a &lt;b and c> d"),
            ("<td nowrap>x", "<td nowrap>x"),
            ("<a href=x>y</a>", "<a href=x>y</a>"),
            ("<a>", "&lt;a>"),
            ("</map> <map>", "&lt;/map> &lt;map>"),
            ("<img src='a>b'/>", "<img src='a>b'/>"),
            ("<time> flies </time>", "<time> flies </time>"),
            ("&amp; &lt &#8470; &#x2116; &#; &x y;", "&amp; &lt &#8470; &#x2116; &amp;#; &amp;x y;"),
            ("&quot, &quote &not &notebook &lt=", "&quot, &amp;quote &amp;not &amp;notebook &amp;lt="),
            ("<\u{130}b>", "&lt;\u{130}b>"),
            ("<", "&lt;"),
            ("</", "&lt;/"),
            ("<script>a</script>b", "<script>a</script>b"),
            ("<script>a</script", "&lt;script>a&lt;/script"),
        ] {
            assert_eq!(without_lookalikes(text, "&lt;", "&amp;"), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_kept(text in "([a-z<>&;/!\"'=. #-]|\\PC|<b|<a |</p>|<script>|</script>|<!--|-->){0,60}") {
            let kept = without_lookalikes(&text, "&lt;", "&amp;").replace("&lt;", "<").replace("&amp;", "&");
            prop_assert_eq!(kept, text.replace("&lt;", "<").replace("&amp;", "&"));
        }
    }
}
