//! Recognises texts without content: marks of missing values, and scripts of the web pages that a text comes from.

use std::collections::HashSet;

/// Marks of a missing value, in any letter case.
const MARKS: [&str; 8] = ["(no genres listed)", "#n/a", "<na>", "n/a", "nan", "none", "null", "undefined"];
/// Marks that would be words in another letter case.
const EXACT: [&str; 3] = ["NA", "NaT", "\\N"];
/// Pieces of scripts, of which one is enough to recognise a script.
const SCRIPTS: [&str; 4] = ["aPageStart", "getTime()", "document.getElementById(", "addEventListener("];
/// Pieces of scripts, of which several are needed to recognise a script.
const PIECES: [&str; 9] = ["var ", "function(", "function (", "window.", "document.", "||", "&&", "};", "()"];

/// Recognises texts without content.
#[derive(Clone, Debug, Default)]
pub struct Junk {
    further: HashSet<String>,
}

impl Junk {
    /// The usual marks and `further` ones.
    pub fn new(further: &[String]) -> Self {
        Self { further: further.iter().map(|mark| mark.trim().to_owned()).collect() }
    }

    /// Why a text has no content; `None` if it has some.
    pub fn reason(&self, text: &str) -> Option<&'static str> {
        let trimmed = text.trim();
        if is_missing(trimmed) || self.further.contains(trimmed) {
            return Some("marker of a missing value");
        }
        is_script(trimmed).then_some("script of a web page")
    }
}

/// Whether a text without blanks around it marks a missing value.
pub fn is_missing(text: &str) -> bool {
    // The longest mark has 18 bytes.
    let short = text.len() <= MARKS[0].len();
    short && (EXACT.contains(&text) || MARKS.iter().any(|mark| text.eq_ignore_ascii_case(mark)))
}

/// Whether a text is a piece of a script or of a style sheet, as in some titles of Amazon's data of 2018.
fn is_script(text: &str) -> bool {
    if text.len() < 20 || !text.contains(['(', '{']) {
        return false;
    }
    if SCRIPTS.iter().any(|piece| text.contains(piece)) {
        return true;
    }
    let pieces = PIECES.iter().filter(|piece| text.contains(*piece)).count();
    let statements = text.matches([';', '=']).count();
    // Inside HTML, a script is removed with its element, and the text around it is kept.
    let is_bare = !text.contains("</script");
    (is_bare && pieces >= 3 && statements >= 3) || is_style(text)
}

/// Whether a text is a style rule such as `.a-box { margin: 0; }` and nothing else.
fn is_style(text: &str) -> bool {
    let Some((selector, rest)) = text.split_once('{') else { return false };
    let Some((rules, _)) = rest.split_once('}') else { return false };
    let rules: Vec<&str> = rules.split(';').map(str::trim).filter(|rule| !rule.is_empty()).collect();
    let is_rule = |rule: &&str| {
        rule.split_once(':').is_some_and(|(name, value)| {
            !value.trim().is_empty()
                && !name.is_empty()
                && name.trim().bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
        })
    };
    let is_selector = selector.trim().starts_with(['.', '#', '@']) && !selector.contains(". ");
    is_selector && !rules.is_empty() && rules.iter().all(is_rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_and_scripts_are_not_text_and_titles_are() {
        let junk = Junk::new(&["No description".to_owned()]);
        for text in ["nan", " NaN ", "NULL", "None", "N/A", "\\N", "(no genres listed)", "<NA>", "NA", "No description"]
        {
            assert_eq!(junk.reason(text), Some("marker of a missing value"), "{text}");
        }
        for text in [
            "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();\nwindow.ue_ihb = (window.ue_ihb || 0) + 1;",
            "(function(f) {var _np=(window.P._namespace(\"x\")); if(_np.guardFatal){_np.guardFatal(f)(_np);}else{f(_np);}}(x()));",
            ".a-section { margin-bottom: 0; display: none }",
        ] {
            assert_eq!(junk.reason(text), Some("script of a web page"), "{text}");
        }
        for text in [
            "",
            "Na",
            "Nan Goldin",
            "None of the above",
            "Null Island",
            "Unknown",
            "Heat (1995)",
            "Functions (of one variable); sets = classes",
            "JavaScript: var and function() explained",
            "C++ <vector> {and more}",
            "no description",
        ] {
            assert_eq!(junk.reason(text), None, "{text}");
        }
    }
}
