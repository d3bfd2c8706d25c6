//! Python literals as `repr` writes them: metadata of 2014 has a dictionary a line.

use serde_json::{Map, Number, Value};

/// Deeper nesting is refused, so that a hostile line can't exhaust the stack.
const DEPTH: usize = 64;

/// What a literal says.
pub struct Literal {
    pub value: Value,
    /// Keys that the outermost dictionary has more than once.
    pub repeated: Vec<String>,
}

/// Reads a literal; nothing where it is none.
pub fn parse(text: &str) -> Option<Literal> {
    let mut parser = Parser { rest: text, repeated: Vec::new() };
    let value = parser.value(DEPTH)?;
    parser.skip_space();
    parser.rest.is_empty().then_some(Literal { value, repeated: parser.repeated })
}

struct Parser<'a> {
    rest: &'a str,
    repeated: Vec<String>,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip_space();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        self.skip_space();
        match self.rest.chars().next()? {
            '{' => self.dictionary(depth),
            '[' => self.list("[", "]", depth),
            '(' => self.list("(", ")", depth),
            '\'' | '"' => self.string().map(Value::String),
            'u' | 'U' if self.rest[1..].starts_with(['\'', '"']) => {
                self.rest = &self.rest[1..];
                self.string().map(Value::String)
            }
            _ => self.word(),
        }
    }

    fn dictionary(&mut self, depth: usize) -> Option<Value> {
        self.eat("{");
        let mut map = Map::new();
        while !self.eat("}") {
            let key = match self.value(depth)? {
                Value::String(key) => key,
                Value::Number(key) => key.to_string(),
                _ => return None,
            };
            if !self.eat(":") {
                return None;
            }
            if depth == DEPTH - 1 && map.contains_key(&key) {
                self.repeated.push(key.clone());
            }
            // The last of several equal keys counts, as in Python; of the outermost ones the caller decides.
            map.insert(key, self.value(depth)?);
            if !self.eat(",") && !self.rest.starts_with('}') {
                return None;
            }
        }
        Some(Value::Object(map))
    }

    fn list(&mut self, open: &str, close: &str, depth: usize) -> Option<Value> {
        self.eat(open);
        let mut values = Vec::new();
        while !self.eat(close) {
            values.push(self.value(depth)?);
            if !self.eat(",") && !self.rest.starts_with(close) {
                return None;
            }
        }
        Some(Value::Array(values))
    }

    fn word(&mut self) -> Option<Value> {
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c))).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "True" => Some(Value::Bool(true)),
            "False" => Some(Value::Bool(false)),
            "None" | "nan" | "inf" | "-inf" => Some(Value::Null),
            _ => {
                let whole = word.trim_end_matches('L');
                let number = whole.parse::<i64>().map(Number::from).ok();
                number.or_else(|| word.parse().ok().and_then(Number::from_f64)).map(Value::Number)
            }
        }
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let mut text = String::new();
        let mut chars = self.rest[1..].chars();
        loop {
            match chars.next()? {
                c if c == quote => break,
                '\\' => match chars.next()? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'a' | 'b' | 'f' | 'v' => text.push(' '),
                    'x' => text.push(hexadecimal(&mut chars, 2)?),
                    'u' => text.push(hexadecimal(&mut chars, 4)?),
                    'U' => text.push(hexadecimal(&mut chars, 8)?),
                    c @ ('\\' | '\'' | '"') => text.push(c),
                    // As Python does with an escape it does not know.
                    c => text.extend(['\\', c]),
                },
                c => text.push(c),
            }
        }
        self.rest = chars.as_str();
        Some(text)
    }
}

/// A character by its number; half a surrogate pair becomes the replacement character.
fn hexadecimal(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    let mut code = 0;
    for _ in 0..digits {
        code = code * 16 + chars.next()?.to_digit(16)?;
    }
    match char::from_u32(code) {
        Some(c) => Some(c),
        None if (0xd800..0xe000).contains(&code) => Some(char::REPLACEMENT_CHARACTER),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(text: &str) -> Option<Value> {
        super::parse(text).map(|literal| literal.value)
    }

    #[test]
    fn keys_that_stand_twice_in_the_outermost_dictionary_are_named() {
        let repeated = |text: &str| super::parse(text).unwrap().repeated;
        assert_eq!(repeated("{'a': 1, 'b': {'c': 1, 'c': 2}, 1: 0}"), Vec::<String>::new());
        assert_eq!(repeated("{'a': 1, 'b': 2, u'a': None, 1: 0, '1': 0}"), ["a", "1"]);
    }

    #[test]
    fn a_metadata_line_of_2014() {
        let line = r#"{'asin': '0000013714', 'title': "Child's \"best\" \xe9\u2019\t", 'price': 17.99, 'salesRank': {'Toys': 3},
            'categories': [['Toys', u'A & B'],], 'imUrl': None, 'ok': True, 'pair': (1, -2L), 'path': 'a\\b\d'}"#;
        let expected = json!({
            "asin": "0000013714", "title": "Child's \"best\" \u{e9}\u{2019}\t", "price": 17.99, "salesRank": {"Toys": 3},
            "categories": [["Toys", "A & B"]], "imUrl": null, "ok": true, "pair": [1, -2], "path": "a\\b\\d"
        });
        assert_eq!(parse(line), Some(expected));
    }

    #[test]
    fn what_is_no_literal_is_refused() {
        for text in [
            "",
            "{",
            "{'a'}",
            "{'a': }",
            "{'a': 1",
            "{'a': 1 'b': 2}",
            "['a'",
            "'cut",
            "'\\u12",
            "{[1]: 2}",
            "1 2",
            "print('x')",
            "\u{1f600}",
            "u",
            "'\\U00110000'",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"[".repeat(100_000)), None, "deep nesting");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn any_text_in_quotes_comes_back(text in "\\PC{0,40}") {
            let literal = format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
            prop_assert_eq!(parse(&literal), Some(Value::String(text)));
        }
    }
}
