//! Several assignments in one text, as in `SET=` of make.

use std::str::FromStr;

/// Assignments `section.key=value` in one text, separated by spaces.
///
/// Values are written as in a pipeline file, so spaces within quotes, brackets and braces belong to the value:
/// `run.seed=7 model.modalities=[{ name = "text" }, { name = "audio", features = "mine" }]` holds two assignments.
/// A word without `=` belongs to the value before it (`source.images=my pictures`). Blanks around `=` are allowed, and an assignment as a
/// whole may be quoted, as in a shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignments(pub Vec<String>);

impl Assignments {
    /// The key of an assignment, with its sections.
    pub fn key_of(assignment: &str) -> &str {
        assignment.split('=').next().unwrap_or_default().trim()
    }

    /// The assignments that take effect: the last one for each key.
    pub fn last_of_each(all: &[String]) -> Vec<String> {
        let is_last = |at: &usize| all[at + 1..].iter().all(|later| Self::key_of(later) != Self::key_of(&all[*at]));
        (0..all.len()).filter(is_last).map(|at| all[at].clone()).collect()
    }
}

/// A text that ends inside quotes, brackets or braces.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{opened}` is not closed; write section.key=value, with spaces between assignments")]
pub struct NotClosed {
    opened: char,
}

impl FromStr for Assignments {
    type Err = NotClosed;

    fn from_str(text: &str) -> Result<Self, NotClosed> {
        let found = split_outside(text, char::is_whitespace)?;
        let words: Vec<&String> = found.iter().filter(|word| !word.is_empty()).collect();
        let mut assignments: Vec<String> = Vec::new();
        for (at, word) in words.iter().enumerate() {
            let is_key = words.get(at + 1).is_some_and(|next| next.starts_with('='));
            match assignments.last_mut() {
                Some(last) if word.starts_with('=') || last.find('=') == Some(last.len() - 1) => last.push_str(word),
                // A word without `=` belongs to the value before it.
                Some(last) if !word.contains('=') && !is_key => *last = format!("{last} {word}"),
                _ => assignments.push(unquoted(word).to_owned()),
            }
        }
        Ok(Self(assignments))
    }
}

/// Splits a text at characters outside of quotes, brackets and braces.
pub fn split_outside(text: &str, is_separator: impl Fn(char) -> bool) -> Result<Vec<String>, NotClosed> {
    let mut found = Vec::new();
    let mut current = String::new();
    // The open brackets, and the quotation mark that encloses the next characters.
    let (mut open, mut quote): (Vec<char>, Option<char>) = (Vec::new(), None);
    let mut is_escaped = false;
    for c in text.chars() {
        if is_separator(c) && open.is_empty() && quote.is_none() {
            found.push(std::mem::take(&mut current));
            continue;
        }
        current.push(c);
        match (quote, c) {
            _ if is_escaped => is_escaped = false,
            (Some('"'), '\\') => is_escaped = true,
            (Some(opened), _) => quote = quote.filter(|_| opened != c),
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => open.push(c),
            (None, ']' | '}') => _ = open.pop(),
            (None, _) => {}
        }
    }
    if let Some(opened) = quote.or(open.pop()) {
        return Err(NotClosed { opened });
    }
    found.push(current);
    Ok(found)
}

/// An assignment without the quotes around the whole of it.
fn unquoted(word: &str) -> &str {
    let inner = |quote| word.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inner('\'').or_else(|| inner('"')).unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_assignments_to_a_key_counts() {
        let all = ["a.b=1", "a.c=2", "a.b = 3"].map(str::to_owned);
        assert_eq!(Assignments::last_of_each(&all), ["a.c=2", "a.b = 3"]);
    }

    fn parse(text: &str) -> Vec<String> {
        text.parse::<Assignments>().unwrap().0
    }

    #[test]
    fn blanks_separate_assignments_but_not_values() {
        assert_eq!(parse(""), Vec::<String>::new());
        assert_eq!(parse("  a.b=1\n c.d=2 "), ["a.b=1", "c.d=2"]);
        assert_eq!(parse("a.b = 1 c.d= \"x\" e.f =2"), ["a.b=1", "c.d=\"x\"", "e.f=2"]);
        assert_eq!(parse("source.images=my pictures run.seed = 1"), ["source.images=my pictures", "run.seed=1"]);
        let value = r#"model.modalities=[{ name = "text" }, { name = "audio", features = "mine" }]"#;
        assert_eq!(parse(&format!("run.seed=7 {value} a.b=c")), ["run.seed=7", value, "a.b=c"]);
        assert_eq!(
            parse(r#"a.b="x y" c.d='[ "' e.f="\" [" g.h=1"#),
            [r#"a.b="x y""#, r#"c.d='[ "'"#, r#"e.f="\" [""#, "g.h=1"]
        );
        assert_eq!(parse(r#"'a.b="x y"' "c.d=['z']""#), [r#"a.b="x y""#, "c.d=['z']"]);
    }

    #[test]
    fn unclosed_quotes_are_reported() {
        for (text, opened) in [("a.b=[1, 2", '['), ("a.b=\"x", '"'), ("a.b={x = 'y}", '\'')] {
            assert_eq!(text.parse::<Assignments>(), Err(NotClosed { opened }), "{text}");
        }
    }
}
