//! `preprocess.where`: an SQL expression over the columns of the interactions.

use std::ops::ControlFlow;

use mp4sr_pipeline::nearest;
use polars::prelude::*;
use polars::sql::sql_expr;
use sqlparser::ast::{self, Spanned as _};
use sqlparser::dialect::GenericDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, Tokenizer};

use crate::as_in_sql::{as_in_sql, type_of};
use crate::partitions::collect_streaming;
use crate::source::{NamedFrame, TextLocation};
use crate::types::{comparable, kind};
use crate::{Error, Result};

/// A parsed condition that has not yet been checked against the columns of a file.
#[derive(Clone, Debug)]
pub struct Condition {
    text: String,
    /// The parts, with their positions in the text.
    parsed: ast::Expr,
    expression: Expr,
    columns: Vec<ColumnUse>,
}

/// The first use of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ColumnUse {
    name: String,
    position: u64,
}

impl Condition {
    /// Parses the value of `preprocess.where`; `None` if it is empty.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        let refuse = |what: String| Error::Setting(format!("`preprocess.where` = {text:?} {what}"));
        check_length(text).map_err(refuse)?;
        let parsed = parse(text).map_err(refuse)?;
        let columns = columns(&parsed, text).map_err(refuse)?;
        let expression = expression_of(&parsed).map_err(|error| {
            let inner = first_of(&parsed, |part| Some((part.clone(), expression_of(part).err()?)));
            refuse(not_evaluated(inner.as_ref(), &error, text))
        })?;
        if columns.is_empty() {
            return Err(refuse(
                "names no column; compare a column of the interactions, as in `rating >= 4`".to_owned(),
            ));
        }
        Ok(Some(Self { text: text.to_owned(), parsed, expression, columns }))
    }

    /// The text of the condition in the pipeline.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The columns that it names, each once.
    pub fn columns(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }

    /// Refuses a condition that names a column that is not among `known`; the error suggests the most similar one.
    pub fn check_columns(&self, known: &[String], file: &str) -> Result<()> {
        let absent = self.columns.iter().find(|column| !known.contains(&column.name));
        absent.map_or(Ok(()), |column| Err(self.unknown(column, known, file)))
    }

    fn unknown(&self, column: &ColumnUse, known: &[String], file: &str) -> Error {
        let names: Vec<&str> = known.iter().map(String::as_str).collect();
        let in_other_case = names.iter().copied().find(|name| name.eq_ignore_ascii_case(&column.name));
        let hint = in_other_case
            .or_else(|| nearest(&column.name, &names))
            .map_or_else(|| format!("the columns are {}", names.join(", ")), |near| format!("did you mean `{near}`?"));
        self.refuse(&format!(
            "names `{}` at character {}, but `{file}` has no such column; {hint}",
            column.name, column.position
        ))
    }

    /// Whether each event satisfies the condition; null if that depends on a missing value. A column without any value must be among
    /// `known`, the columns of `file`.
    pub fn evaluate(&self, named: NamedFrame, known: &[String], file: &str) -> Result<Column> {
        silence_polars();
        let NamedFrame { mut query, streaming, texts, empty } = named;
        if !empty.is_empty() {
            self.check_columns(known, file)?;
        }
        let schema = query.collect_schema()?;
        self.check_types(&schema, &texts)?;
        let rows = query.clone();
        let evaluated = evaluated(query, &schema, self.expression.clone(), streaming)?.map_err(|error| {
            let nothing = DataFrame::empty_with_schema(&schema).lazy();
            // Type errors appear even without rows, and evaluating many rows takes a long time.
            let inner = self.first_failing(&nothing, &schema, false);
            let inner = inner.or_else(|| self.first_failing(&rows, &schema, streaming));
            let because = inner.as_ref().map(|(part, _)| text_reason(part, &schema, &texts)).unwrap_or_default();
            self.refuse(&(not_evaluated(inner.as_ref(), &error, &self.text) + &because))
        })?;
        let result = evaluated.columns()[0].clone();
        if result.dtype() != &DataType::Boolean {
            let kind = kind(result.dtype());
            return Err(
                self.refuse(&format!("is {kind} and not a condition; compare it with a value, as in `rating >= 4`"))
            );
        }
        Ok(result)
    }

    /// The innermost part that cannot be evaluated.
    fn first_failing(&self, rows: &LazyFrame, schema: &SchemaRef, streaming: bool) -> Option<(ast::Expr, PolarsError)> {
        first_of(&self.parsed, |part| {
            // Alone, an array is a column of another length.
            let expression = expression_of(part).ok().filter(|_| !matches!(part, ast::Expr::Array(_)))?;
            let error = evaluated(rows.clone(), schema, expression, streaming).ok()?.err()?;
            Some((part.clone(), error))
        })
    }

    /// Refuses a part that compares values of different types or uses something else as a condition; the error says where it is, and names
    /// the columns of the table.
    fn check_types(&self, schema: &SchemaRef, texts: &[(String, TextLocation)]) -> Result<()> {
        let wrong = first_of(&self.parsed, |part| {
            let at = place(part, &self.text);
            let compared = compared(part).into_iter().find_map(|(left, right)| {
                let (first, second) = (TypedPart::new(left, schema)?, TypedPart::new(right, schema)?);
                let (left, right) = (first.described(), second.described());
                (!comparable(&first.kind, &second.kind)).then(|| {
                    let because = text_reason(part, schema, texts);
                    let hint = date_hint(&first, &second);
                    format!("compares {left} with {right}{at}{because}{hint}")
                })
            });
            let not_a_condition = || {
                conditions(part).into_iter().find_map(|condition| {
                    let at = place(condition, &self.text);
                    let part = TypedPart::new(condition, schema)
                        .filter(|part| !(part.kind.is_bool() || part.kind.is_null()))?;
                    let what = part.described();
                    let end = if what.ends_with(',') { "" } else { "," };
                    Some(format!(
                        "has {what}{end} where a condition belongs{at}; compare it with a value, as in `rating >= 4`"
                    ))
                })
            };
            let not_a_text = || {
                let part = TypedPart::new(matched(part)?, schema)
                    .filter(|part| !(part.kind.is_string() || part.kind.is_null()))?;
                Some(format!("compares {} with a pattern{at}; only texts have patterns", part.described()))
            };
            compared.or_else(not_a_condition).or_else(not_a_text)
        });
        wrong.map_or(Ok(()), |what| Err(self.refuse(&what)))
    }

    fn refuse(&self, what: &str) -> Error {
        Error::Setting(format!("`preprocess.where` = {:?} {what}", self.text))
    }
}

/// The greatest number of AND, OR and arithmetic operators in a condition. Each is a level of the parsed expression, and polars processes
/// an expression recursively, for which a thread has limited stack space.
const MOST_JOINED: usize = 50;

/// Refuses a condition that joins too many parts.
fn check_length(text: &str) -> std::result::Result<(), String> {
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, text).tokenize() else { return Ok(()) };
    let joins = |token: &&Token| match token {
        Token::Word(word) => [Keyword::AND, Keyword::OR].contains(&word.keyword),
        Token::Plus | Token::Minus | Token::Mul | Token::Div | Token::Mod | Token::StringConcat => true,
        _ => false,
    };
    match tokens.iter().filter(joins).count() {
        count if count > MOST_JOINED => Err(format!(
            "joins {} parts by AND, OR or arithmetic, and at most {} are possible; compare a column with several values as in \
             `item_id IN ('a', 'b')`",
            count + 1,
            MOST_JOINED + 1
        )),
        _ => Ok(()),
    }
}

/// Parses an expression; the error says what is wrong with it and where.
fn parse(text: &str) -> std::result::Result<ast::Expr, String> {
    let dialect = GenericDialect {};
    let mut parser = Parser::new(&dialect).try_with_sql(text).map_err(|e| parse_error(&e, text))?;
    let expression = parser.parse_expr().map_err(|e| parse_error(&e, text))?;
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return Err(format!(
            "has `{}` at character {} where the condition should end",
            rest.token,
            character(text, rest.span.start)
        ));
    }
    Ok(expression)
}

/// Prevents polars from printing warnings, which are about the expressions that it is given here, and not about the condition.
fn silence_polars() {
    polars::error::set_warning_function(|_, _| ());
}

/// The expression of polars for a part of a condition.
fn expression_of(part: &ast::Expr) -> PolarsResult<Expr> {
    let mut part = part.clone();
    let _ = ast::visit_expressions_mut(&mut part, |part| {
        // For polars, a missing text contains no other at position 0.
        if let Some(absent) = missing_text_of_position(part) {
            let or_missing = format!("CASE WHEN {absent} THEN NULL ELSE {part} END");
            *part = parse(&or_missing).unwrap_or_else(|_| part.clone());
        }
        if let ast::Expr::Function(ast::Function { over: Some(ast::WindowType::WindowSpec(window)), .. }) = part {
            window.order_by = with_order_of_missing_values(&window.order_by);
        }
        ControlFlow::<()>::Continue(())
    });
    // polars refuses a list that has numbers with and without a point.
    let _ = ast::visit_expressions_mut(&mut part, |part| {
        if let ast::Expr::InList { list, .. } = part {
            let mut numbers: Vec<&mut String> = list.iter_mut().filter_map(digits).collect();
            if numbers.iter().any(|number| is_fraction(number)) {
                numbers.iter_mut().filter(|number| !is_fraction(number)).for_each(|number| number.push_str(".0"));
            }
        }
        ControlFlow::<()>::Continue(())
    });
    sql_expr(part.to_string())
}

/// The order of a window with a key for missing values, which are less than all others unless the condition says where they come. polars
/// follows this only for several keys, and puts the missing values of a single key first.
fn with_order_of_missing_values(order: &[ast::OrderByExpr]) -> Vec<ast::OrderByExpr> {
    let [key] = order else { return order.to_vec() };
    if !missing_values_are_last(key) {
        return vec![key.clone()];
    }
    let (missing, other) = if is_descending(key) { (0, 1) } else { (1, 0) };
    let flag = parse(&format!("CASE WHEN ({}) IS NULL THEN {missing} ELSE {other} END", key.expr));
    flag.ok().map(|expr| ast::OrderByExpr { expr, ..key.clone() }).into_iter().chain([key.clone()]).collect()
}

fn is_descending(key: &ast::OrderByExpr) -> bool {
    key.options.asc == Some(false)
}

fn missing_values_are_last(key: &ast::OrderByExpr) -> bool {
    key.options.nulls_first.map_or_else(|| is_descending(key), |first| !first)
}

/// The condition that a text is missing in which a position is searched, or that which is searched; `None` for all other expressions.
fn missing_text_of_position(part: &ast::Expr) -> Option<String> {
    let texts: Vec<String> = match part {
        ast::Expr::Position { expr, r#in } => vec![expr.to_string(), r#in.to_string()],
        ast::Expr::Function(function) if function.name.to_string().eq_ignore_ascii_case("STRPOS") => {
            arguments(function).map(ToString::to_string).collect()
        }
        _ => return None,
    };
    Some(texts.iter().map(|text| format!("({text}) IS NULL")).collect::<Vec<_>>().join(" OR "))
}

/// The digits of a number, without its sign.
fn digits(part: &mut ast::Expr) -> Option<&mut String> {
    match part {
        ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(number, _), .. }) => Some(number),
        ast::Expr::UnaryOp { op: ast::UnaryOperator::Minus | ast::UnaryOperator::Plus, expr } => digits(expr),
        _ => None,
    }
}

fn is_fraction(number: &str) -> bool {
    number.contains(['.', 'e', 'E'])
}

/// The columns of an expression with the positions of their first uses; the error says what cannot be in a condition.
fn columns(expression: &ast::Expr, text: &str) -> std::result::Result<Vec<ColumnUse>, String> {
    let mut found: Vec<ColumnUse> = Vec::new();
    let mut problem = None;
    let _ = ast::visit_expressions(expression, |part| {
        match part {
            ast::Expr::Identifier(name) if !found.iter().any(|column| column.name == name.value) => {
                found.push(ColumnUse { name: name.value.clone(), position: character(text, name.span.start) });
            }
            ast::Expr::CompoundIdentifier(names) => {
                let joined = names.iter().map(|name| name.value.as_str()).collect::<Vec<_>>().join(".");
                problem = Some(format!("names `{joined}`; put a column whose name has a full stop into double quotes"));
                return ControlFlow::Break(());
            }
            // In SQL they are never null, but polars gives null for a missing value.
            ast::Expr::IsTrue(_) | ast::Expr::IsNotTrue(_) | ast::Expr::IsFalse(_) | ast::Expr::IsNotFalse(_) => {
                problem = Some(format!(
                    "has `{part}`, which is not supported; use `COALESCE`, as in `NOT COALESCE(verified, FALSE)`"
                ));
                return ControlFlow::Break(());
            }
            ast::Expr::Function(function) if matches!(function.args, ast::FunctionArguments::None) => {
                problem =
                    Some(format!("has `{part}`, which is a word of SQL; put a column of this name into double quotes"));
                return ControlFlow::Break(());
            }
            ast::Expr::Function(function) => {
                if let Some(reason) = unlike_sql(function) {
                    problem = Some(format!("has `{part}`, which is not supported; {reason}"));
                    return ControlFlow::Break(());
                }
            }
            ast::Expr::Subquery(_) | ast::Expr::InSubquery { .. } | ast::Expr::Exists { .. } => {
                problem = Some("has a subquery; only columns of the interactions can be named".to_owned());
                return ControlFlow::Break(());
            }
            _ => {}
        }
        ControlFlow::Continue(())
    });
    problem.map_or(Ok(found), Err)
}

/// The functions, beside COUNT, that polars computes up to each row of a window with an order. It computes all others over the whole window.
const ORDERED: [&str; 8] = ["FIRST_VALUE", "LAG", "LAST_VALUE", "LEAD", "MAX", "MIN", "ROW_NUMBER", "SUM"];

/// Why polars would not compute what SQL defines for a function, and what to write instead.
fn unlike_sql(function: &ast::Function) -> Option<String> {
    // The name may be in quotes.
    let name = function.name.to_string().replace(['"', '`'], "").to_uppercase();
    if ["LEFT", "RIGHT"].contains(&name.as_str()) && arguments(function).any(|argument| argument.to_string() == "0") {
        return Some("no character is left; compare the text with ''".to_owned());
    }
    if name == "ROUND" {
        return Some("halves would be rounded to the even number; use FLOOR, as in `FLOOR(rating + 0.5)`".to_owned());
    }
    if name == "LOG" {
        return Some("dialects differ in the order of its arguments; use LN, as in `LN(price) / LN(10)`".to_owned());
    }
    let Some(ast::WindowType::WindowSpec(window)) = &function.over else { return None };
    let is_distinct = matches!(&function.args, ast::FunctionArguments::List(list) if
        list.duplicate_treatment == Some(ast::DuplicateTreatment::Distinct));
    let follows_order = !is_distinct && (name == "COUNT" || ORDERED.contains(&name.as_str()));
    if !follows_order && (!window.order_by.is_empty() || window.window_frame.is_some()) {
        return Some(format!(
            "the functions that can be computed up to each row of an ordered window are {}, and COUNT without DISTINCT",
            ORDERED.join(", ")
        ));
    }
    if name == "LAST_VALUE" && (window.order_by.is_empty() || !window.window_frame.as_ref().is_none_or(ends_at_the_row))
    {
        return Some(
            "LAST_VALUE is computed up to each row of an ordered window; for the last value of a whole window, use FIRST_VALUE with the \
             opposite order"
                .to_owned(),
        );
    }
    let several = if window.order_by.len() > 1 { window.order_by.as_slice() } else { &[] };
    if let Some(key) = several.iter().find(|key| missing_values_are_last(key) != is_descending(key)) {
        return Some(format!(
            "in an order of several keys, missing values are less than all others; replace them by a value, as in `COALESCE({}, 0)`",
            key.expr
        ));
    }
    let is_windowed = |expression: Expr| (&expression).into_iter().any(|part| matches!(part, Expr::Over { .. }));
    // What polars refuses is reported with its own reason.
    let ignores_window = || expression_of(&ast::Expr::Function(function.clone())).is_ok_and(|own| !is_windowed(own));
    // Up to the row, the last value is that of the row, which needs no window.
    (name != "LAST_VALUE" && !window.partition_by.is_empty() && ignores_window())
        .then(|| format!("{name} can only be computed over all events, without OVER"))
}

/// Whether the rows of a frame are those from the start of the window up to the current row.
fn ends_at_the_row(frame: &ast::WindowFrame) -> bool {
    let is_current = frame.end_bound.as_ref().is_none_or(|end| matches!(end, ast::WindowFrameBound::CurrentRow));
    is_current && matches!(frame.start_bound, ast::WindowFrameBound::Preceding(None))
}

fn arguments(function: &ast::Function) -> impl Iterator<Item = &ast::FunctionArg> {
    match &function.args {
        ast::FunctionArguments::List(list) => list.args.as_slice(),
        _ => &[],
    }
    .iter()
}

/// Rewrites `Expected: ..., found: ... at Line: 1, Column: 9` with the position as one number, because a condition is one line.
fn parse_error(error: &ParserError, text: &str) -> String {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message.clone(),
        ParserError::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
    };
    match message.rsplit_once(" at Line: ") {
        Some((what, position)) => {
            let mut numbers = position.split(", Column: ").filter_map(|number| number.trim().parse::<u64>().ok());
            let at = Location { line: numbers.next().unwrap_or(1), column: numbers.next().unwrap_or(1) };
            if what.starts_with("No infix parser") {
                let at = character(text, at);
                let from_there: String = text.chars().skip(at as usize - 1).collect();
                let word = from_there.split_whitespace().next().unwrap_or_default();
                return format!("is not an SQL expression: `{word}` at character {at} is not an operator");
            }
            let what = what.replace("Expected: ", "expected ").replace(", found: ", ", found `");
            let quote = if what.contains('`') { "`" } else { "" };
            format!("is not an SQL expression: {what}{quote} at character {}", character(text, at))
        }
        None => match message.strip_suffix(", found: EOF") {
            Some(what) => {
                let what = what.replace("Expected: ", "expected ");
                let end = text.trim_end().chars().count() + 1;
                format!("is not an SQL expression: {what}, but the condition ends there, at character {end}")
            }
            None => format!("is not an SQL expression: {message}"),
        },
    }
}

/// The position of a character in `text`, from 1.
fn character(text: &str, at: Location) -> u64 {
    let before = text.split('\n').take(at.line.saturating_sub(1) as usize).map(|line| line.chars().count() as u64 + 1);
    before.sum::<u64>() + at.column
}

/// Evaluates a part of a condition for each event. The outer error is not the condition's.
fn evaluated(
    rows: LazyFrame,
    schema: &SchemaRef,
    part: Expr,
    streaming: bool,
) -> Result<std::result::Result<DataFrame, PolarsError>> {
    let part = as_in_sql(part, schema);
    // A condition on all events together, such as `MAX(rating) > 3`, has a single value, which applies to each event.
    let evaluated = rows.with_columns([part.alias("satisfies")]).select([col("satisfies")]);
    match if streaming { collect_streaming(evaluated) } else { evaluated.collect().map_err(Error::from) } {
        Ok(frame) => Ok(Ok(frame)),
        Err(Error::Query(error)) => Ok(Err(error)),
        Err(other) => Err(other),
    }
}

/// Calls `check` with the parts of an expression, inner ones before those that contain them, until one returns something.
fn first_of<T>(expression: &ast::Expr, check: impl FnMut(&ast::Expr) -> Option<T>) -> Option<T> {
    struct InnerFirst<F>(F);

    impl<T, F: FnMut(&ast::Expr) -> Option<T>> ast::Visitor for InnerFirst<F> {
        type Break = T;

        fn post_visit_expr(&mut self, part: &ast::Expr) -> ControlFlow<T> {
            (self.0)(part).map_or(ControlFlow::Continue(()), ControlFlow::Break)
        }
    }

    ast::Visit::visit(expression, &mut InnerFirst(check)).break_value()
}

/// Where a part of a condition is.
fn place(part: &ast::Expr, text: &str) -> String {
    // The parser gives no position for some kinds of parts; the first part inside them that has one is used instead.
    let begins = |part: &ast::Expr| Some(part.span().start).filter(|start| start.line > 0);
    let start = begins(part).or_else(|| first_of(part, begins));
    start.map_or(String::new(), |start| format!(" at character {}", character(text, start)))
}

/// What is wrong with a condition that polars refuses: the innermost part that it refuses, or all of it.
fn not_evaluated(inner: Option<&(ast::Expr, PolarsError)>, whole: &PolarsError, text: &str) -> String {
    let (at, part, error) = match inner {
        Some((part, error)) => (place(part, text), format!("`{part}`"), error),
        None => (String::new(), "it".to_owned(), whole),
    };
    let message = in_one_line(error);
    // The message shows the part as the parser holds it.
    let is_unknown = ["expression ", "operator "].iter().any(|kind| message.starts_with(kind))
        && message.ends_with(" is not currently supported");
    let message = if is_unknown {
        format!("{part} is not supported")
    } else if message.starts_with("cannot parse literal") {
        format!("{part} is not a number of 64 bits that is written with digits and a point")
    } else {
        message
    };
    format!("cannot be evaluated{at}: {message}")
}

/// The values that a part compares with one another.
fn compared(part: &ast::Expr) -> Vec<(&ast::Expr, &ast::Expr)> {
    use ast::BinaryOperator as Op;
    match part {
        ast::Expr::BinaryOp {
            left,
            op: Op::Eq | Op::NotEq | Op::Lt | Op::LtEq | Op::Gt | Op::GtEq | Op::Spaceship,
            right,
        }
        | ast::Expr::IsDistinctFrom(left, right)
        | ast::Expr::IsNotDistinctFrom(left, right) => vec![(left, right)],
        ast::Expr::Between { expr, low, high, .. } => vec![(expr, low), (expr, high)],
        ast::Expr::InList { expr, list, .. } => list.iter().map(|one| (&**expr, one)).collect(),
        _ => Vec::new(),
    }
}

/// The parts of a part that have to be true or false.
fn conditions(part: &ast::Expr) -> Vec<&ast::Expr> {
    use ast::BinaryOperator as Op;
    match part {
        ast::Expr::BinaryOp { left, op: Op::And | Op::Or | Op::Xor, right } => vec![left, right],
        ast::Expr::UnaryOp { op: ast::UnaryOperator::Not, expr } => vec![expr],
        ast::Expr::Case { operand: None, conditions, .. } => conditions.iter().map(|when| &when.condition).collect(),
        _ => Vec::new(),
    }
}

/// The part of a part that has to be text, because it is compared with a pattern.
fn matched(part: &ast::Expr) -> Option<&ast::Expr> {
    match part {
        ast::Expr::Like { expr, .. }
        | ast::Expr::ILike { expr, .. }
        | ast::Expr::SimilarTo { expr, .. }
        | ast::Expr::RLike { expr, .. } => Some(expr),
        _ => None,
    }
}

/// A part of a condition and what its values are.
struct TypedPart<'a> {
    part: &'a ast::Expr,
    kind: DataType,
}

impl<'a> TypedPart<'a> {
    /// `None` if the type is not known without evaluating the part.
    fn new(part: &'a ast::Expr, schema: &SchemaRef) -> Option<Self> {
        let kind = type_of(&expression_of(part).ok()?, schema)?;
        Some(Self { part, kind })
    }

    fn described(&self) -> String {
        match self.part {
            ast::Expr::Identifier(name) => format!("`{}`, which is {},", name.value, kind(&self.kind)),
            _ => kind(&self.kind).to_owned(),
        }
    }
}

/// Why the first column of text in a part is text, if that was found out from its cells.
fn text_reason(part: &ast::Expr, schema: &SchemaRef, texts: &[(String, TextLocation)]) -> String {
    let found = first_of(part, |part| match part {
        ast::Expr::Identifier(name) if schema.get(&name.value).is_some_and(DataType::is_string) => {
            texts.iter().find(|(column, _)| *column == name.value)
        }
        _ => None,
    });
    found.map_or(String::new(), |(name, text)| {
        let (found, line, path) = (&text.found, text.line, text.path.display());
        format!("; `{name}` is text because of `{found}` in line {line} of `{path}`")
    })
}

/// How a date or a time is written, if one is compared with text, or how text is compared with it.
fn date_hint(first: &TypedPart<'_>, second: &TypedPart<'_>) -> String {
    let is_time = |part: &TypedPart<'_>| matches!(part.kind, DataType::Date | DataType::Datetime(..));
    let other = match (is_time(first), is_time(second)) {
        (true, false) => second,
        (false, true) => first,
        _ => return String::new(),
    };
    match other.part {
        ast::Expr::Identifier(name) if other.kind.is_string() => {
            format!("; if the texts are dates such as 2018-09-30, convert them, as in `CAST({} AS DATE)`", name.value)
        }
        _ if other.kind.is_string() || other.kind.is_primitive_numeric() => {
            "; a date is written as in `DATE '2018-09-30'`, and a time as in `TIMESTAMP '2018-09-30 12:00:00'`, in UTC"
                .to_owned()
        }
        _ => String::new(),
    }
}

/// The message of polars without its context and hints. The reason is in the last line if the first one announces it.
fn in_one_line(error: &PolarsError) -> String {
    let message = error.to_string();
    let mut lines = message.lines();
    let first = lines.next().unwrap_or_default();
    match lines.next_back().filter(|_| first.ends_with(':')) {
        Some(last) => format!("{first} {}", last.trim()),
        None => first.to_owned(),
    }
}
