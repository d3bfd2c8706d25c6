//! Literals that are not quite JSON: Python dictionaries as `repr` writes them (metadata of 2014 has one per line), JSON with `NaN`
//! and lone surrogates as `json.dumps` writes it, and lists of numpy in the cells of tables that pandas wrote.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use serde_json::{Map, Number, Value};

/// Private characters that stand for halves of surrogate pairs, which no text can have, so that ids that differ in them stay different.
const HALVES: RangeInclusive<char> = '\u{10f000}'..='\u{10f7ff}';
/// Deeper nesting is refused, so that a hostile line cannot exhaust the stack.
const DEPTH: usize = 64;

/// The content of a literal.
pub struct Literal<'t> {
    pub value: Value,
    /// Keys that the outermost dictionary has more than once.
    pub repeated: Vec<String>,
    /// Numbers of the outermost dictionary, by key, as they are written.
    pub numbers: Vec<(String, &'t str)>,
}

/// Reads a literal; `None` if the text is not one.
pub fn parse(text: &str) -> Option<Literal<'_>> {
    let mut parser = Parser { rest: text, repeated: Vec::new(), numbers: Vec::new() };
    let value = parser.value(DEPTH)?;
    parser.skip_space();
    parser.rest.is_empty().then_some(Literal { value, repeated: parser.repeated, numbers: parser.numbers })
}

/// The list or object that a cell of text contains; `None` if it is a text.
pub fn of_cell(text: &str) -> Option<Value> {
    let text = text.trim();
    let calls = text.strip_suffix(')').is_some_and(|text| text.contains('('));
    let enclosed = [('[', ']'), ('{', '}'), ('(', ')')];
    let is_enclosed = enclosed.iter().any(|&(open, close)| text.starts_with(open) && text.ends_with(close));
    if !is_enclosed && !calls {
        return None;
    }
    let value = parse(text)?.value;
    let holds_text =
        |value: &Value| matches!(value, Value::String(_) | Value::Object(_) | Value::Array(_) | Value::Null);
    match &value {
        // A tuple or set of numbers may be a part of a title, such as (500).
        Value::Array(values) if text.starts_with(['(', '{']) => values.iter().all(holds_text).then_some(value),
        Value::Array(_) | Value::Object(_) => Some(value),
        _ => None,
    }
}

struct Parser<'a> {
    rest: &'a str,
    repeated: Vec<String>,
    numbers: Vec<(String, &'a str)>,
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
            'b' if self.rest[1..].starts_with(['\'', '"']) => {
                self.rest = &self.rest[1..];
                of_bytes(&self.string()?).map(Value::String)
            }
            'u' | 'U' if self.rest[1..].starts_with(['\'', '"']) => {
                self.rest = &self.rest[1..];
                self.string().map(Value::String)
            }
            _ => self.word(depth),
        }
    }

    /// A dictionary, or a set, which is read as a list.
    fn dictionary(&mut self, depth: usize) -> Option<Value> {
        self.eat("{");
        let mut map = Map::new();
        while !self.eat("}") {
            let first = self.value(depth)?;
            if map.is_empty() && !self.is_next(':') {
                return self.set(first, depth);
            }
            let key = match first {
                Value::String(key) => key,
                Value::Number(key) => key.to_string(),
                _ => return None,
            };
            if !self.eat(":") {
                return None;
            }
            let outermost = depth == DEPTH - 1;
            if outermost && map.contains_key(&key) {
                self.repeated.push(key.clone());
            }
            self.skip_space();
            let before = self.rest;
            let value = self.value(depth)?;
            let text = &before[..before.len() - self.rest.len()];
            if outermost && value.is_number() && !text.contains('(') {
                self.numbers.push((key.clone(), text));
            }
            // The last of several equal keys counts, as in Python; in the outermost dictionary, the caller decides.
            map.insert(key, value);
            if !self.eat(",") && !self.rest.starts_with('}') {
                return None;
            }
        }
        Some(Value::Object(map))
    }

    fn is_next(&mut self, token: char) -> bool {
        self.skip_space();
        self.rest.starts_with(token)
    }

    /// The rest of a set after its first member.
    fn set(&mut self, first: Value, depth: usize) -> Option<Value> {
        let mut members = vec![first];
        while !self.eat("}") {
            if !self.eat(",") {
                return None;
            }
            if !self.is_next('}') {
                members.push(self.value(depth)?);
            }
        }
        Some(Value::Array(members))
    }

    fn list(&mut self, open: &str, close: &str, depth: usize) -> Option<Value> {
        self.eat(open);
        let mut values = Vec::new();
        while !self.eat(close) {
            values.push(self.value(depth)?);
            // numpy has blanks between the entries.
            let parted = self.rest.starts_with(char::is_whitespace);
            if !self.eat(",") && !self.rest.starts_with(close) && !parted {
                return None;
            }
        }
        Some(Value::Array(values))
    }

    fn word(&mut self, depth: usize) -> Option<Value> {
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c))).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if rest.starts_with('(') && word.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return self.call(word, depth);
        }
        match word {
            "True" | "true" | "np.True_" => Some(Value::Bool(true)),
            "False" | "false" | "np.False_" => Some(Value::Bool(false)),
            "None" | "null" | "nan" | "NaN" | "NaT" | "inf" | "-inf" | "Infinity" | "-Infinity" => Some(Value::Null),
            _ => {
                let whole = word.trim_end_matches('L');
                let number = whole.parse::<i64>().map(Number::from).ok();
                let number = number.or_else(|| whole.parse::<u64>().map(Number::from).ok());
                number.or_else(|| word.parse().ok().and_then(Number::from_f64)).map(Value::Number)
            }
        }
    }

    /// A call in place of a value: `array([...], dtype=object)`, `Timestamp('...')`, `Decimal('1.5')`, `np.float64(1.5)`,
    /// `datetime.date(2018, 9, 30)`.
    fn call(&mut self, name: &str, depth: usize) -> Option<Value> {
        const KNOWN: [&str; 8] =
            ["array", "Timestamp", "Decimal", "OrderedDict", "set", "frozenset", "str_", "datetime64"];
        // The scalars of NumPy, with their number of bits.
        const SCALARS: [&str; 4] = ["float", "int", "uint", "bool_"];
        let name = name.rsplit('.').next().unwrap_or(name);
        let is_scalar = SCALARS.contains(&name.trim_end_matches(|c: char| c.is_ascii_digit())) || name == "bool";
        if matches!(name, "datetime" | "date") && self.eat("(") {
            return self.date();
        }
        if !(KNOWN.contains(&name) || is_scalar) || !self.eat("(") {
            return None;
        }
        let value = self.value(depth)?;
        // Further arguments have names, and values of one word.
        while self.eat(",") {
            self.skip_space();
            let end = self.rest.find([',', ')'])?;
            self.rest = &self.rest[end..];
        }
        self.eat(")").then_some(value)
    }

    /// The numbers of a date and a time, up to the closing bracket, and the zone if it is UTC.
    fn date(&mut self) -> Option<Value> {
        let mut numbers: Vec<u32> = Vec::new();
        let mut zone = "";
        while !self.eat(")") {
            self.skip_space();
            let end = self.rest.find([',', ')'])?;
            match self.rest[..end].trim_end() {
                "tzinfo=datetime.timezone.utc" | "tzinfo=<UTC>" => zone = "Z",
                number => numbers.push(number.parse().ok()?),
            }
            self.rest = &self.rest[end..];
            self.eat(",");
        }
        let (&[year, month, day], time) = numbers.split_first_chunk::<3>()?;
        let at = |index: usize| time.get(index).copied().unwrap_or(0);
        let mut text = format!("{year:04}-{month:02}-{day:02}");
        if !time.is_empty() {
            text.push_str(&format!("T{:02}:{:02}:{:02}.{:06}{zone}", at(0), at(1), at(2), at(3)));
        }
        Some(Value::String(text))
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
                    'x' => text.push(character(hexadecimal(&mut chars, 2)?)?),
                    'u' => text.push(unit(&mut chars)?),
                    'U' => text.push(character(hexadecimal(&mut chars, 8)?)?),
                    c @ ('\\' | '\'' | '"') => text.push(c),
                    // JSON allows this escape, Python does not.
                    '/' if quote == '"' => text.push('/'),
                    // Python, too, keeps an escape that it does not know.
                    c => text.extend(['\\', c]),
                },
                c => text.push(c),
            }
        }
        self.rest = chars.as_str();
        Some(text)
    }
}

/// The text of a literal of bytes, each of which was read as a character; `None` if it is not UTF-8.
fn of_bytes(read: &str) -> Option<String> {
    let bytes: Option<Vec<u8>> = read.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    String::from_utf8(bytes?).ok()
}

/// The character of one UTF-16 code unit, or of a surrogate pair.
fn unit(chars: &mut std::str::Chars<'_>) -> Option<char> {
    let first = hexadecimal(chars, 4)?;
    let mut ahead = chars.clone();
    let is_first = (0xd800..0xdc00).contains(&first);
    if is_first
        && ahead.next() == Some('\\')
        && ahead.next() == Some('u')
        && let Some(second) = hexadecimal(&mut ahead, 4).filter(|second| (0xdc00..0xe000).contains(second))
    {
        *chars = ahead;
        return character(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00));
    }
    character(first)
}

fn hexadecimal(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    let mut code = 0;
    for _ in 0..digits {
        code = code * 16 + chars.next()?.to_digit(16)?;
    }
    Some(code)
}

/// A character by its number; half a surrogate pair becomes a character of [`HALVES`].
fn character(code: u32) -> Option<char> {
    match char::from_u32(code) {
        Some(c) => Some(c),
        None if (0xd800..0xe000).contains(&code) => char::from_u32(*HALVES.start() as u32 + code - 0xd800),
        None => None,
    }
}

/// Replaces halves of surrogate pairs in a text. Texts of other files hardly ever have the private characters that stand for them.
pub fn replace_halves(text: Cow<'_, str>, by: impl Fn(u32) -> String) -> Cow<'_, str> {
    let is_half = |c: char| HALVES.contains(&c);
    // All of these characters begin with this byte, which hardly any text has.
    if !text.as_bytes().contains(&0xf4) || !text.contains(is_half) {
        return text;
    }
    let replaced = |c: char| if is_half(c) { by(c as u32 - *HALVES.start() as u32 + 0xd800) } else { c.to_string() };
    Cow::Owned(text.chars().map(replaced).collect())
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
    fn duplicate_keys_in_the_outermost_dictionary_are_named() {
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
    fn json_as_python_writes_it() {
        let line = r#"{"a": NaN, "b": [Infinity, -Infinity, true, null], "c": "\ud83d\ude00 \ud83d <\/b>", "d": 1e3}"#;
        let expected =
            json!({ "a": null, "b": [null, null, true, null], "c": "\u{1f600} \u{10f03d} </b>", "d": 1000.0 });
        assert_eq!(parse(line), Some(expected));
        let literal =
            super::parse("{'t': 1600000000.1234567890123, 'n': 18446744073709551616, 'x': {'y': 1}}").unwrap();
        let numbers: Vec<(&str, &str)> = literal.numbers.iter().map(|(key, text)| (key.as_str(), *text)).collect();
        assert_eq!(numbers, [("t", "1600000000.1234567890123"), ("n", "18446744073709551616")]);
    }

    #[test]
    fn cells_of_tables_that_pandas_wrote() {
        for (cell, expected) in [
            ("['Action', 'Crime']", json!(["Action", "Crime"])),
            ("[\"Horror\",\"Sci-Fi\"]", json!(["Horror", "Sci-Fi"])),
            (
                "['Calms the skin.' 'Made in small batches.'\n 'It\\'s']",
                json!(["Calms the skin.", "Made in small batches.", "It's"]),
            ),
            (
                "{'hi_res': array([None, 'h'], dtype=object), 'large': array([], dtype=object)}",
                json!({"hi_res": [null, "h"], "large": []}),
            ),
            ("[{'id': 28, 'name': 'Action'}]", json!([{"id": 28, "name": "Action"}])),
            ("('a', 'b')", json!(["a", "b"])),
            ("[1. 2.5]", json!([1.0, 2.5])),
            ("array(['a'], dtype='<U1')", json!(["a"])),
            ("[np.float64(1.5), numpy.int64(3), np.bool_(True), np.False_]", json!([1.5, 3, true, false])),
            (
                "{'at': datetime.datetime(2018, 9, 30, 8, 5), 'day': datetime.date(2018, 9, 3), 'x': np.float32(0.1)}",
                json!({"at": "2018-09-30T08:05:00.000000", "day": "2018-09-03", "x": 0.1}),
            ),
            (
                "[datetime.datetime(2018, 9, 30, 8, 5, tzinfo=datetime.timezone.utc), np.datetime64('2018-09-30T08:05')]",
                json!(["2018-09-30T08:05:00.000000Z", "2018-09-30T08:05"]),
            ),
            ("{'Action', 'Crime'}", json!(["Action", "Crime"])),
            ("{'of': {b'caf\\xc3\\xa9'}, 'n': {1, 2,}}", json!({"of": ["caf\u{e9}"], "n": [1, 2]})),
            (" [] ", json!([])),
        ] {
            assert_eq!(of_cell(cell), Some(expected), "{cell}");
        }
        for text in [
            "[REC]",
            "(500) Days",
            "(500)",
            "{500}",
            "[Unisex] <Cotton>",
            "{unknown}",
            "sin(x)",
            "12",
            "",
            "'quoted'",
            "['cut'",
            "['a''b']",
        ] {
            assert_eq!(of_cell(text), None, "{text}");
        }
    }

    #[test]
    fn text_that_is_not_a_literal_is_refused() {
        for text in [
            "",
            "{",
            "{'a' 'b'}",
            "b'\\xe9'",
            "{'a', 'b': 1}",
            "{'a': 1, 'b'}",
            "datetime.datetime(2018, 9, 30, 8, tzinfo=datetime.timezone(datetime.timedelta(seconds=7200)))",
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
        fn any_quoted_text_round_trips(text in "\\PC{0,40}") {
            let literal = format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
            prop_assert_eq!(parse(&literal), Some(Value::String(text)));
        }
    }
}
