//! A condition on the columns of the items, written as an SQL expression, that selects which items may be listed.
//!
//! Like `preprocess.where`, it is parsed by sqlparser. It is evaluated here, item by item, because only seven columns can be named; polars,
//! which evaluates the conditions on interactions, stays a dependency of preprocessing alone.

use mp4sr_artifact::Items;
use mp4sr_pipeline::nearest;
use sqlparser::ast::{BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, UnaryOperator, Value};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

/// The columns that a condition may name.
const COLUMNS: [&str; 7] = ["item_id", "title", "sentences", "images", "categories", "sounds", "events"];
/// The functions that a condition may call.
const FUNCTIONS: [&str; 4] = ["lower", "upper", "length", "array_contains"];

/// The operators between two values.
const OPERATORS: [BinaryOperator; 8] = [
    BinaryOperator::And,
    BinaryOperator::Or,
    BinaryOperator::Eq,
    BinaryOperator::NotEq,
    BinaryOperator::Lt,
    BinaryOperator::LtEq,
    BinaryOperator::Gt,
    BinaryOperator::GtEq,
];
/// What a condition may consist of, for messages.
const USABLE: &str = "comparisons, AND, OR, NOT, IN, BETWEEN, LIKE, ANY";

/// An error in a condition.
#[derive(Debug, thiserror::Error)]
#[error("the condition {text:?} {what}")]
pub struct ConditionError {
    /// The condition.
    pub text: String,
    /// The error, worded to follow the condition.
    pub what: String,
}

/// The value of a column, a constant or an expression.
#[derive(Clone, Debug, PartialEq)]
enum ItemValue<'a> {
    Text(std::borrow::Cow<'a, str>),
    Number(f64),
    Boolean(bool),
    Texts(&'a [String]),
    /// NULL, such as a missing title.
    Null,
}

impl ItemValue<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Number(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::Texts(_) => "a list of texts",
            Self::Null => "nothing",
        }
    }
}

type Evaluated<T> = Result<T, String>;

/// Returns for each item whether it satisfies the condition `text`, `[I]`. `events` are the numbers of training events of the items, `[I]`.
///
/// ```
/// use mp4sr_artifact::Items;
/// use mp4sr_recommend::condition::satisfying;
///
/// let texts = |texts: [&str; 2]| texts.map(str::to_owned).to_vec();
/// let items = Items {
///     ids: texts(["cup", "pot"]),
///     titles: texts(["A cup", "A pot"]),
///     categories: vec![texts(["kitchen", "blue"]), Vec::new()],
///     sentences: vec![Vec::new(); 2],
///     images: vec![Vec::new(); 2],
///     sounds: vec![Vec::new(); 2],
/// };
/// assert_eq!(satisfying("'blue' = ANY(categories) OR events > 5", &items, &[2, 4])?, [true, false]);
/// # Ok::<(), mp4sr_recommend::condition::ConditionError>(())
/// ```
pub fn satisfying(text: &str, items: &Items, events: &[u32]) -> Result<Vec<bool>, ConditionError> {
    let refuse = |what: String| ConditionError { text: text.to_owned(), what };
    let expression = parse(text).map_err(refuse)?;
    check(&expression).map_err(refuse)?;
    let holds = |row: &ItemRow<'_>| match evaluate(&expression, row) {
        Ok(ItemValue::Boolean(holds)) => Ok(holds),
        Ok(ItemValue::Null) => Ok(false),
        Ok(other) => Err(refuse(format!(
            "is {} and not a condition; compare it with a value, as in `events >= 4`",
            other.kind()
        ))),
        Err(what) => Err(refuse(what)),
    };
    // Because this item has a value in every column, wrong types are found even if no item of the run has a title, or if there are none.
    let one = || "a".to_owned();
    let complete = Items {
        ids: vec![one()],
        titles: vec![one()],
        categories: vec![vec![one()]],
        sentences: vec![vec![one()]],
        images: vec![vec![one()]],
        sounds: vec![vec![one()]],
    };
    holds(&ItemRow { items: &complete, events: &[1], at: 0 })?;
    (0..items.len()).map(|at| holds(&ItemRow { items, events, at })).collect()
}

fn parse(text: &str) -> Evaluated<Expr> {
    let dialect = GenericDialect {};
    let invalid = |e: sqlparser::parser::ParserError| format!("is not an SQL expression: {}", plain(&e.to_string()));
    let mut parser = Parser::new(&dialect).try_with_sql(text).map_err(invalid)?;
    let expression = parser.parse_expr().map_err(invalid)?;
    let rest = parser.peek_token();
    if rest.token == Token::EOF {
        Ok(expression)
    } else {
        Err(format!("has `{}` at character {} where it should end", rest.token, rest.span.start.column))
    }
}

/// The parser's message without the prefix of its error type.
fn plain(message: &str) -> &str {
    message.split_once(": ").map_or(message, |(_, rest)| rest)
}

/// Rejects unknown columns, functions and expressions anywhere in the condition.
fn check(expression: &Expr) -> Evaluated<()> {
    let all = |parts: &[&Expr]| parts.iter().try_for_each(|part| check(part));
    match expression {
        Expr::Identifier(name) => {
            let known = COLUMNS.contains(&name.value.as_str());
            let hint = || {
                nearest(&name.value, &COLUMNS).map_or_else(
                    || format!("the columns are {}", COLUMNS.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                )
            };
            let character = name.span.start.column;
            if known {
                Ok(())
            } else {
                Err(format!(
                    "names `{}` at character {character}, but items have no such column; {}",
                    name.value,
                    hint()
                ))
            }
        }
        Expr::Value(_) => Ok(()),
        Expr::Nested(inner) | Expr::IsNull(inner) | Expr::IsNotNull(inner) | Expr::UnaryOp { expr: inner, .. } => {
            check(inner)
        }
        Expr::BinaryOp { op, left, right } | Expr::AnyOp { compare_op: op, left, right, .. } => {
            if !OPERATORS.contains(op) {
                return Err(format!("has the operator `{op}`, which is not supported; use {USABLE}"));
            }
            all(&[left, right])
        }
        Expr::Like { escape_char: Some(_), .. } | Expr::ILike { escape_char: Some(_), .. } => {
            Err("has `ESCAPE`, which is not supported; `_` and `%` always are wildcards".to_owned())
        }
        Expr::Like { expr, pattern, .. } | Expr::ILike { expr, pattern, .. } => all(&[expr, pattern]),
        Expr::Between { expr, low, high, .. } => all(&[expr, low, high]),
        Expr::InList { expr, list, .. } => {
            check(expr)?;
            list.iter().try_for_each(check)
        }
        Expr::Function(_) => {
            let (name, arguments) = call(expression)?;
            let expected = if name == "array_contains" { 2 } else { 1 };
            if arguments.len() != expected {
                return Err(format!("calls `{name}` with {} arguments, expected {expected}", arguments.len()));
            }
            arguments.into_iter().try_for_each(check)
        }
        other => Err(format!("has `{other}`, which is not supported; use {USABLE}")),
    }
}

/// The name and the arguments of a call, if the function is known.
fn call(expression: &Expr) -> Evaluated<(&'static str, Vec<&Expr>)> {
    let Expr::Function(function) = expression else { return Err(format!("has `{expression}`, which is not a call")) };
    let name = function.name.to_string().to_lowercase();
    let known = FUNCTIONS.into_iter().find(|known| *known == name);
    let known = known.ok_or_else(|| format!("calls `{name}`; the functions are {}", FUNCTIONS.join(", ")))?;
    let FunctionArguments::List(list) = &function.args else { return Ok((known, Vec::new())) };
    let argument = |argument: &'_ FunctionArg| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(_)) => Ok(()),
        other => Err(format!("calls `{name}` with `{other}`, which is not a value")),
    };
    list.args.iter().try_for_each(argument)?;
    let arguments = list.args.iter().filter_map(|argument| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => Some(value),
        _ => None,
    });
    Ok((known, arguments.collect()))
}

/// One item, for which the condition is evaluated.
struct ItemRow<'a> {
    items: &'a Items,
    events: &'a [u32],
    at: usize,
}

impl<'a> ItemRow<'a> {
    fn column(&self, name: &str) -> ItemValue<'a> {
        let Self { items, events, at: row } = *self;
        match name {
            "item_id" => ItemValue::Text(items.ids[row].as_str().into()),
            "title" if items.titles[row].is_empty() => ItemValue::Null,
            "title" => ItemValue::Text(items.titles[row].as_str().into()),
            "sentences" => ItemValue::Texts(&items.sentences[row]),
            "images" => ItemValue::Texts(&items.images[row]),
            "categories" => ItemValue::Texts(&items.categories[row]),
            "sounds" => ItemValue::Texts(&items.sounds[row]),
            _ => ItemValue::Number(f64::from(events[row])),
        }
    }
}

fn evaluate<'a>(expression: &'a Expr, row: &ItemRow<'a>) -> Evaluated<ItemValue<'a>> {
    match expression {
        Expr::Identifier(name) => Ok(row.column(&name.value)),
        Expr::Value(value) => constant(&value.value),
        Expr::Nested(inner) => evaluate(inner, row),
        Expr::IsNull(inner) => Ok(ItemValue::Boolean(evaluate(inner, row)? == ItemValue::Null)),
        Expr::IsNotNull(inner) => Ok(ItemValue::Boolean(evaluate(inner, row)? != ItemValue::Null)),
        Expr::UnaryOp { op, expr } => unary(*op, expr, row),
        Expr::BinaryOp { left, op, right } => binary(left, op, right, row),
        Expr::AnyOp { left, compare_op, right, .. } => {
            let (value, list) = (evaluate(left, row)?, evaluate(right, row)?);
            let ItemValue::Texts(texts) = list else {
                return Err(format!("uses ANY with `{right}`, which is {} and not a list", list.kind()));
            };
            let text = |text: &'a String| ItemValue::Text(text.as_str().into());
            let compared = texts.iter().map(|own| compare(&value, compare_op, &text(own), expression));
            Ok(truth(any(compared)?, false))
        }
        Expr::InList { expr, list, negated } => {
            let value = evaluate(expr, row)?;
            let compared =
                list.iter().map(|other| compare(&value, &BinaryOperator::Eq, &evaluate(other, row)?, expression));
            Ok(truth(any(compared)?, *negated))
        }
        Expr::Between { expr, negated, low, high } => {
            let value = evaluate(expr, row)?;
            let above = compare(&value, &BinaryOperator::GtEq, &evaluate(low, row)?, expression)?;
            let below = compare(&value, &BinaryOperator::LtEq, &evaluate(high, row)?, expression)?;
            let within = match (above, below) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            };
            Ok(truth(within, *negated))
        }
        Expr::Like { expr, pattern, negated, .. } => like(expr, pattern, row, false).map(|like| truth(like, *negated)),
        Expr::ILike { expr, pattern, negated, .. } => like(expr, pattern, row, true).map(|like| truth(like, *negated)),
        Expr::Function(_) => function(expression, row),
        other => Err(format!("has `{other}`, which is not supported")),
    }
}

/// Whether one of these comparisons holds: if none holds and one is unknown, this is unknown.
fn any(compared: impl Iterator<Item = Evaluated<Option<bool>>>) -> Evaluated<Option<bool>> {
    let mut found = Some(false);
    for one in compared {
        found = match (found, one?) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (None, _) | (_, None) => None,
            (Some(false), Some(false)) => Some(false),
        };
    }
    Ok(found)
}

fn truth(value: Option<bool>, negated: bool) -> ItemValue<'static> {
    value.map_or(ItemValue::Null, |value| ItemValue::Boolean(value != negated))
}

fn constant(value: &Value) -> Evaluated<ItemValue<'_>> {
    match value {
        Value::Number(text, _) => {
            text.parse().map(ItemValue::Number).map_err(|_| format!("has `{text}`, which is not a number"))
        }
        Value::SingleQuotedString(text) => Ok(ItemValue::Text(text.as_str().into())),
        Value::Boolean(value) => Ok(ItemValue::Boolean(*value)),
        Value::Null => Ok(ItemValue::Null),
        other => Err(format!("has `{other}`; put texts into single quotes")),
    }
}

fn unary<'a>(operator: UnaryOperator, inner: &'a Expr, row: &ItemRow<'a>) -> Evaluated<ItemValue<'a>> {
    match (operator, evaluate(inner, row)?) {
        (_, ItemValue::Null) => Ok(ItemValue::Null),
        (UnaryOperator::Not, ItemValue::Boolean(value)) => Ok(ItemValue::Boolean(!value)),
        (UnaryOperator::Minus, ItemValue::Number(value)) => Ok(ItemValue::Number(-value)),
        (UnaryOperator::Plus, ItemValue::Number(value)) => Ok(ItemValue::Number(value)),
        (operator, value) => Err(format!("has `{operator} {inner}`, where `{inner}` is {}", value.kind())),
    }
}

fn binary<'a>(
    left: &'a Expr,
    operator: &BinaryOperator,
    right: &'a Expr,
    row: &ItemRow<'a>,
) -> Evaluated<ItemValue<'a>> {
    let (first, second) = (evaluate(left, row)?, evaluate(right, row)?);
    let logical = |value: &ItemValue<'_>, part: &Expr| match value {
        ItemValue::Boolean(value) => Ok(Some(*value)),
        ItemValue::Null => Ok(None),
        other => Err(format!("has `{part}` beside {operator}, which is {} and not a condition", other.kind())),
    };
    let decided = match operator {
        BinaryOperator::And | BinaryOperator::Or => {
            // Three-valued logic: an unknown side does not decide.
            let (first, second) = (logical(&first, left)?, logical(&second, right)?);
            let decides = *operator == BinaryOperator::Or;
            match (first, second) {
                (Some(value), _) | (_, Some(value)) if value == decides => Some(decides),
                (Some(_), Some(_)) => Some(!decides),
                _ => None,
            }
        }
        _ => {
            let message = || format!("compares `{left}`, {}, with `{right}`, {}", first.kind(), second.kind());
            ordered(&first, operator, &second).map_err(|NotComparable| message())?
        }
    };
    Ok(truth(decided, false))
}

fn compare(
    first: &ItemValue<'_>,
    operator: &BinaryOperator,
    second: &ItemValue<'_>,
    part: &Expr,
) -> Evaluated<Option<bool>> {
    let message = || format!("compares {} with {} in `{part}`", first.kind(), second.kind());
    ordered(first, operator, second).map_err(|NotComparable| message())
}

/// The error of comparing values of different types, or with an operator that is not a comparison.
struct NotComparable;

/// The result of a comparison; `None` if a side is missing.
fn ordered(
    first: &ItemValue<'_>,
    operator: &BinaryOperator,
    second: &ItemValue<'_>,
) -> Result<Option<bool>, NotComparable> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match (first, second) {
        (ItemValue::Null, _) | (_, ItemValue::Null) => return Ok(None),
        (ItemValue::Text(a), ItemValue::Text(b)) => a.cmp(b),
        // A zero equals its negative, unlike in a total order.
        (ItemValue::Number(a), ItemValue::Number(b)) => a.partial_cmp(b).unwrap_or_else(|| a.total_cmp(b)),
        (ItemValue::Boolean(a), ItemValue::Boolean(b)) => a.cmp(b),
        _ => return Err(NotComparable),
    };
    match operator {
        BinaryOperator::Eq => Ok(Some(order == Equal)),
        BinaryOperator::NotEq => Ok(Some(order != Equal)),
        BinaryOperator::Lt => Ok(Some(order == Less)),
        BinaryOperator::LtEq => Ok(Some(order != Greater)),
        BinaryOperator::Gt => Ok(Some(order == Greater)),
        BinaryOperator::GtEq => Ok(Some(order != Less)),
        _ => Err(NotComparable),
    }
}

/// SQL's LIKE: `%` matches any text, and `_` any single character.
fn like<'a>(text: &'a Expr, pattern: &'a Expr, row: &ItemRow<'a>, ignores_case: bool) -> Evaluated<Option<bool>> {
    match (evaluate(text, row)?, evaluate(pattern, row)?) {
        (ItemValue::Null, _) | (_, ItemValue::Null) => Ok(None),
        (ItemValue::Text(text), ItemValue::Text(pattern)) if ignores_case => {
            Ok(Some(matches(&text.to_lowercase(), &pattern.to_lowercase())))
        }
        (ItemValue::Text(text), ItemValue::Text(pattern)) => Ok(Some(matches(&text, &pattern))),
        (first, second) => Err(format!("has LIKE between {} and {}, expected texts", first.kind(), second.kind())),
    }
}

fn matches(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    let (mut at, mut of_pattern) = (0, 0);
    // The last `%`, and the position in the text where it was met. Backtracking to the last `%` suffices.
    let mut back: Option<(usize, usize)> = None;
    while at < text.len() {
        match pattern.get(of_pattern) {
            Some('%') => {
                back = Some((of_pattern, at));
                of_pattern += 1;
            }
            Some(&wanted) if wanted == '_' || wanted == text[at] => {
                at += 1;
                of_pattern += 1;
            }
            _ => match &mut back {
                Some((wild, start)) => {
                    *start += 1;
                    (at, of_pattern) = (*start, *wild + 1);
                }
                None => return false,
            },
        }
    }
    pattern[of_pattern..].iter().all(|&rest| rest == '%')
}

fn function<'a>(expression: &'a Expr, row: &ItemRow<'a>) -> Evaluated<ItemValue<'a>> {
    let (name, arguments) = call(expression)?;
    let values = arguments.iter().map(|argument| evaluate(argument, row)).collect::<Evaluated<Vec<_>>>()?;
    let wrong = || {
        let kinds: Vec<&str> = values.iter().map(ItemValue::kind).collect();
        Err(format!("calls `{name}` with {}", kinds.join(" and ")))
    };
    Ok(match (name, &values[..]) {
        (_, values) if values.contains(&ItemValue::Null) => ItemValue::Null,
        ("lower", [ItemValue::Text(text)]) => ItemValue::Text(text.to_lowercase().into()),
        ("upper", [ItemValue::Text(text)]) => ItemValue::Text(text.to_uppercase().into()),
        ("length", [ItemValue::Text(text)]) => ItemValue::Number(text.chars().count() as f64),
        ("length", [ItemValue::Texts(texts)]) => ItemValue::Number(texts.len() as f64),
        ("array_contains", [ItemValue::Texts(texts), ItemValue::Text(text)]) => {
            ItemValue::Boolean(texts.iter().any(|own| own.as_str() == text))
        }
        _ => return wrong(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(condition: &str) -> Result<Vec<usize>, String> {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<String>>();
        let items = Items {
            ids: texts(&["a", "b", "c", "d"]),
            titles: texts(&["Red cup", "blue pot", "", "100% wool_hat"]),
            sentences: vec![texts(&["One.", "Two."]), Vec::new(), Vec::new(), Vec::new()],
            images: vec![texts(&["a.jpg"]), Vec::new(), Vec::new(), Vec::new()],
            categories: vec![texts(&["Toys", "Red"]), texts(&["Toys"]), Vec::new(), Vec::new()],
            sounds: vec![Vec::new(); 4],
        };
        let found = satisfying(condition, &items, &[5, 0, 9, 2]).map_err(|e| e.to_string())?;
        Ok(found.iter().enumerate().filter(|(_, holds)| **holds).map(|(row, _)| row).collect())
    }

    #[test]
    fn conditions_select_items() {
        for (condition, expected) in [
            ("events >= 2 AND events < 9", vec![0, 3]),
            ("NOT (events > 2)", vec![1, 3]),
            ("events BETWEEN 0 AND 4", vec![1, 3]),
            ("events NOT BETWEEN 0 AND 4", vec![0, 2]),
            ("item_id IN ('a', 'd')", vec![0, 3]),
            ("item_id NOT IN ('a', 'd')", vec![1, 2]),
            ("title NOT IN ('blue pot', NULL)", vec![]),
            ("title IN ('blue pot', NULL) OR events = 9", vec![1, 2]),
            ("'Toys' = ANY(categories)", vec![0, 1]),
            ("array_contains(categories, 'Red') OR item_id = 'c'", vec![0, 2]),
            ("title LIKE '%p%'", vec![0, 1]),
            ("title LIKE 'red%'", vec![]),
            ("title ILIKE 'red%'", vec![0]),
            ("title LIKE '___ cup'", vec![0]),
            ("title LIKE '%o%o%'", vec![3]),
            ("lower(title) = 'red cup'", vec![0]),
            ("title IS NULL", vec![2]),
            // A missing title is neither equal nor unequal to a value.
            ("title <> 'Red cup'", vec![1, 3]),
            ("title = 'x' OR events = 9", vec![2]),
            ("title = 'x' AND events = 9", vec![]),
            ("length(sentences) = 2 AND length(images) > 0", vec![0]),
            ("events > -1", vec![0, 1, 2, 3]),
            // A zero equals its negative, and a value outside of one bound is outside whatever the other is.
            ("events >= 0 AND -0 = 0", vec![0, 1, 2, 3]),
            ("events NOT BETWEEN 4 AND NULL", vec![1, 3]),
            ("events BETWEEN 4 AND NULL", vec![]),
            // A missing value may be in a list that is not empty.
            ("NOT (NULL = ANY(categories))", vec![2, 3]),
        ] {
            assert_eq!(holding(condition), Ok(expected), "{condition}");
        }
    }

    #[test]
    fn wrong_types_are_found_without_any_item() {
        let (texts, lists) = (Vec::<String>::new, Vec::<Vec<String>>::new);
        let none = Items {
            ids: texts(),
            titles: texts(),
            sentences: lists(),
            images: lists(),
            categories: lists(),
            sounds: lists(),
        };
        let message = satisfying("title > 3 OR events = 1", &none, &[]).unwrap_err().to_string();
        assert!(message.contains("compares `title`, text, with `3`, a number"), "{message}");
    }

    #[test]
    fn mistakes_are_reported_with_their_position() {
        for (condition, part) in [
            ("category = 'Toys'", "names `category` at character 1"),
            ("category = 'Toys'", "did you mean `categories`?"),
            ("events >", "is not an SQL expression"),
            ("events > 3 4", "has `4` at character 12 where it should end"),
            ("events > 'x'", "compares `events`, a number, with `'x'`, text"),
            ("categories = 'Toys'", "a list of texts, with `'Toys'`, text"),
            ("events", "is a number and not a condition"),
            ("sqrt(events) > 1", "calls `sqrt`; the functions are lower"),
            ("lower(events) = 'x'", "calls `lower` with a number"),
            ("events IN (SELECT 1)", "is not supported"),
            ("title = \"Red cup\"", "names `Red cup` at character 9"),
        ] {
            let message = holding(condition).unwrap_err();
            assert!(message.contains(part), "{condition}: {message}");
        }
    }
}
