//! Converts text from web pages to sentences: tags are removed, entities decoded and white space collapsed, and a library finds the sentences.

use std::cell::{Cell, RefCell};

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{BufferQueue, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};

use crate::html;

/// Two noncharacters of Unicode. They replace any `<` that does not begin a tag and any `&` that does not begin an entity, to distinguish
/// them from markup that is written as entities.
const LITERALS: [(char, &str); 2] = [('\u{fdd0}', "<"), ('\u{fdd1}', "&")];
/// How often markup may be wrapped in itself (`&amp;lt;b&amp;gt;` is wrapped twice).
const WRAPPINGS: usize = 4;
/// Elements that end a paragraph.
const BLOCKS: [&str; 21] = [
    "p",
    "div",
    "li",
    "ul",
    "ol",
    "dl",
    "dt",
    "dd",
    "table",
    "tr",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "blockquote",
    "section",
    "article",
    "hr",
    "pre",
];

/// Whether a text may contain HTML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Markup {
    /// Tags of HTML are removed, and entities decoded.
    Html,
    /// As `Html`, and everything in angle brackets written as entities is removed too: shops wrap their own markup in HTML.
    WrappedHtml,
    /// Everything is text.
    None,
}

impl Markup {
    fn removed(self, text: &str) -> String {
        match self {
            Self::Html => plain(text, false),
            Self::WrappedHtml => plain(text, true),
            Self::None => text.to_owned(),
        }
    }

    /// A text on one line, for titles.
    pub fn line(self, text: &str) -> String {
        words(&self.removed(text))
    }

    /// The sentences of a text, and whether markup was removed from it. A blank line, or the end of a paragraph's element, ends a
    /// sentence.
    pub fn sentences(self, text: &str) -> (Vec<String>, bool) {
        let removed = self.removed(text);
        (paragraphs(&removed).iter().flat_map(|paragraph| of_paragraph(paragraph)).collect(), removed != text)
    }

    /// Whether a text contains markup that would be removed.
    pub fn is_in(self, text: &str) -> bool {
        self != Self::None && text.contains(['<', '&']) && self.removed(text) != text
    }
}

fn of_paragraph(paragraph: &str) -> Vec<String> {
    let mut sentences: Vec<String> = Vec::new();
    for part in sentencex::segment("en", paragraph).into_iter().map(words).filter(|part| has_content(part)) {
        match sentences.last_mut() {
            // The number of an entry ("1.") belongs to what it counts.
            Some(last) if !last.contains(char::is_alphabetic) => {
                last.push(' ');
                last.push_str(&part);
            }
            _ => sentences.push(part),
        }
    }
    if sentences.len() > 1 && sentences.last().is_some_and(|last| !last.contains(char::is_alphabetic)) {
        let number = sentences.pop().unwrap_or_default();
        if let Some(last) = sentences.last_mut() {
            last.push(' ');
            last.push_str(&number);
        }
    }
    sentences
}

/// Whether a text contains a letter or a digit.
pub fn has_content(text: &str) -> bool {
    text.contains(char::is_alphanumeric)
}

/// Replaces white space of any kind by single spaces.
fn words(text: &str) -> String {
    let blank = |c: char| c.is_whitespace() || c.is_control();
    text.split(blank).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn paragraphs(text: &str) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    for line in text.lines() {
        let line = words(line);
        match paragraphs.last_mut() {
            Some(last) if !line.is_empty() => {
                last.push_str(if last.is_empty() { "" } else { " " });
                last.push_str(&line);
            }
            _ => paragraphs.push(String::new()),
        }
    }
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    paragraphs
}

/// The text without tags, comments and scripts and with entities decoded, even if the markup itself is written as entities.
fn plain(text: &str, any_wrapped: bool) -> String {
    let [(less, _), (and, _)] = LITERALS;
    let mut text = if any_wrapped { text.replace([less, and], " ") } else { text.to_owned() };
    for wrapping in 0..WRAPPINGS {
        if !text.contains(['<', '&']) {
            break;
        }
        let unwrapped = match (any_wrapped, wrapping) {
            (false, _) => unwrap(html::without_lookalikes(&text, "&lt;", "&amp;")),
            (true, 0) => {
                unwrap(html::without_lookalikes(&text, less.encode_utf8(&mut [0; 4]), and.encode_utf8(&mut [0; 4])))
            }
            (true, _) => unwrap(closed(&text)),
        };
        if unwrapped == text {
            break;
        }
        text = unwrapped;
    }
    if any_wrapped { LITERALS.iter().fold(text, |text, (code, literal)| text.replace(*code, literal)) } else { text }
}

/// A tag that is never closed is treated as text: "pants <5 years" keeps its end.
fn closed(text: &str) -> String {
    let (tagged, rest) = text.split_at(text.rfind('>').map_or(0, |at| at + 1));
    format!("{tagged}{}", rest.replace('<', "&lt;"))
}

fn unwrap(text: String) -> String {
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(text));
    let tokenizer = Tokenizer::new(Sink::default(), TokenizerOpts::default());
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    tokenizer.sink.text.into_inner()
}

#[derive(Default)]
struct Sink {
    text: RefCell<String>,
    /// Whether the tokens are inside a script or a style sheet.
    hidden: Cell<bool>,
}

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        match token {
            Token::CharacterTokens(text) if !self.hidden.get() => self.text.borrow_mut().push_str(&text),
            Token::TagToken(tag) => {
                let name = tag.name.as_ref();
                if BLOCKS.contains(&name) {
                    self.text.borrow_mut().push_str("\n\n");
                } else if name == "br" {
                    self.text.borrow_mut().push('\n');
                } else if name == "td" || name == "th" {
                    self.text.borrow_mut().push(' ');
                }
                let opens = tag.kind == TagKind::StartTag && !tag.self_closing;
                self.hidden.set(opens && (name == "script" || name == "style"));
                if self.hidden.get() {
                    let kind = if name == "script" { RawKind::ScriptData } else { RawKind::Rawtext };
                    return TokenSinkResult::RawData(kind);
                }
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(text: &str) -> String {
        Markup::Html.line(text)
    }

    fn sentences(text: &str) -> Vec<String> {
        Markup::Html.sentences(text).0
    }

    #[test]
    fn tags_and_entities_are_removed_and_lookalikes_are_kept() {
        for (text, expected) in [
            ("Tom &amp; Jerry&#39;s &quot;Caf&eacute;&quot;&nbsp;\u{2122}", "Tom & Jerry's \"Caf\u{e9}\" \u{2122}"),
            ("Rock &amp;amp; Roll &amp;lt;b&amp;gt;loud&amp;lt;/b&amp;gt;", "Rock & Roll loud"),
            ("un<b>break</b>able<br/>next <td>a</td><td>b</td>", "unbreakable next a b"),
            ("I <3 you, 2 < 3 & 4 > 1; pants <5 years", "I <3 you, 2 < 3 & 4 > 1; pants <5 years"),
            ("AT&T R&D fish&chips", "AT&T R&D fish&chips"),
            ("C++ <vector> and <map> cookbook", "C++ <vector> and <map> cookbook"),
            ("[Unisex] <Cotton> Shirt", "[Unisex] <Cotton> Shirt"),
            ("<<<SALE>>> Mug", "<<<SALE>>> Mug"),
            ("a<b and c>d", "a<b and c>d"),
            ("For ages <three and >two", "For ages <three and >two"),
            ("Pencil&notebook, this &not that", "Pencil&notebook, this &not that"),
            ("2.8 X 11.6&quot, White", "2.8 X 11.6\", White"),
            ("It&#39;s a &lt;classic&gt;&hellip;", "It's a <classic>\u{2026}"),
            ("Vec&lt;u8&gt; and Option<i> of <T>", "Vec<u8> and Option<i> of <T>"),
            ("<map name='m'>x</map> <P CLASS=a>y <BR> z", "x y z"),
            ("<o:p></o:p>Word <st1:place w:st=\"on\">Paris</st1:place>", "Word Paris"),
            ("cut <b>bold", "cut bold"),
            ("a<!-- never closed", "a<!-- never closed"),
            ("a<script>var x = '<b>';</script>b<style>p {}</style>c<!-- d -->e", "abce"),
            ("tab\there\u{0}and\u{7}there", "tab here and there"),
            ("<a href=\"x>y\">link</a>", "link"),
            ("", ""),
        ] {
            assert_eq!(Markup::Html.line(text), expected, "{text}");
        }
    }

    #[test]
    fn text_that_is_not_html_is_unchanged() {
        assert_eq!(Markup::None.line("<b>x</b> &amp;"), "<b>x</b> &amp;");
        let wrapped = "<p>It&#39;s a &lt;classic&gt;</p>";
        assert_eq!(
            (Markup::Html.line(wrapped), Markup::WrappedHtml.line(wrapped)),
            ("It's a <classic>".into(), "It's a".into())
        );
        for (text, expected) in [
            ("C++ <vector>", "C++ <vector>"),
            ("Read&section <5 years", "Read&section <5 years"),
            ("Pencil&notebook, 5&quot; wide", "Pencil&notebook, 5\" wide"),
            ("zero \u{fdd0} one &amp; two", "zero one & two"),
            ("std::vector<int> in C++ &amp; C", "std::vector<int> in C++ & C"),
            ("Fits <brand x> pens<br>&lt;i&gt;and ink", "Fits <brand x> pens and ink"),
            ("Weighs <s. Great pen &amp; ink &lt;3. Buy &gt; it.", "Weighs <s. Great pen & ink <3. Buy > it."),
        ] {
            assert_eq!(Markup::WrappedHtml.line(text), expected, "{text}");
        }
        assert!(Markup::Html.is_in("<b>x</b>") && !Markup::None.is_in("<b>x</b>") && !Markup::Html.is_in("<T>"));
    }

    #[test]
    fn abbreviations_numbers_and_initials_do_not_end_a_sentence() {
        assert_eq!(
            sentences("Dr. Smith paid $3.50, e.g. for A. J. Foyt's car. Made in the U.S.A. by hand! Really?"),
            ["Dr. Smith paid $3.50, e.g. for A. J. Foyt's car.", "Made in the U.S.A. by hand!", "Really?"]
        );
    }

    #[test]
    fn paragraphs_end_sentences_and_fragments_join_their_neighbours() {
        let list = "<p>Set of two</p><ul><li>1. Soft</li><li>2. Warm</li></ul>One line\nand its end\n\nanother<br>line<br><br>last";
        assert_eq!(
            sentences(list),
            ["Set of two", "1. Soft", "2. Warm", "One line and its end", "another line", "last"]
        );
        assert_eq!(sentences("*** --- ***"), Vec::<String>::new());
        assert_eq!(sentences("Great. ***"), ["Great."]);
        assert_eq!(sentences("100%"), ["100%"]);
        assert_eq!(sentences("It weighs little. 12."), ["It weighs little. 12."]);
        assert_eq!(sentences(" \n "), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn any_text_gives_clean_sentences(text in "([a-z<>&;/!\"'. \\n#-]|\\PC|&lt;|<b>|</p>|<script>|</style|<!--|&#x?[0-9]{0,9}){0,60}") {
            for sentence in sentences(&text).into_iter().chain([line(&text)]) {
                prop_assert_eq!(&words(&sentence), &sentence);
            }
            prop_assert!(sentences(&text).iter().all(|sentence| has_content(sentence)));
        }

        #[test]
        fn plain_words_are_kept_in_order(text in "[a-z]{1,8}( [a-z]{1,8}){0,12}[.!?]?") {
            prop_assert_eq!(sentences(&text).join(" "), text);
        }
    }
}
