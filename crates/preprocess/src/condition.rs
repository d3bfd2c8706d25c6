//! `preprocess.where`: an SQL expression over the columns of the interactions.

use std::ops::ControlFlow;

use mp4sr_pipeline::nearest;
use polars::prelude::*;
use polars::sql::sql_expr;
use sqlparser::ast;
use sqlparser::dialect::GenericDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, Tokenizer};

use crate::partitions::collect_streaming;
use crate::source::{NamedFrame, TextLocation};
use crate::{Error, Result};

/// A parsed condition that has not yet been checked against the columns of a file.
#[derive(Clone, Debug)]
pub struct Condition {
    text: String,
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
        let columns = columns(text).map_err(refuse)?;
        let expression = sql_expr(text).map_err(|e| refuse(format!("cannot be evaluated: {}", first_line(&e))))?;
        if columns.is_empty() {
            return Err(refuse(
                "names no column; compare a column of the interactions, as in `rating >= 4`".to_owned(),
            ));
        }
        Ok(Some(Self { text: text.to_owned(), expression, columns }))
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
        let hint = nearest(&column.name, &names)
            .map_or_else(|| format!("the columns are {}", names.join(", ")), |near| format!("did you mean `{near}`?"));
        self.refuse(&format!(
            "names `{}` at character {}, but `{file}` has no such column; {hint}",
            column.name, column.position
        ))
    }

    /// Whether each event satisfies the condition; null if that depends on a missing value. A column without any value must be among
    /// `known`, the columns of `file`.
    pub fn evaluate(&self, named: NamedFrame, known: &[String], file: &str) -> Result<Column> {
        let NamedFrame { mut query, streaming, texts, empty } = named;
        if !empty.is_empty() {
            self.check_columns(known, file)?;
        }
        let schema = query.collect_schema()?;
        self.check_comparisons(&self.expression, &schema, &texts)?;
        let expression = as_in_sql(self.expression.clone(), &schema);
        // A condition on all events together, such as `MAX(rating) > 3`, has a single value, which applies to each event.
        let evaluated = query.with_columns([expression.alias("satisfies")]).select([col("satisfies")]);
        let evaluated = if streaming { collect_streaming(evaluated) } else { evaluated.collect().map_err(Error::from) };
        let evaluated = evaluated.map_err(|error| match error {
            Error::Query(error) => self.refuse(&format!("cannot be evaluated: {}", first_line(&error))),
            other => other,
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

    /// Refuses a comparison of values of different types; the error names the columns of the table.
    fn check_comparisons(&self, part: &Expr, schema: &SchemaRef, texts: &[(String, TextLocation)]) -> Result<()> {
        for part in part {
            let Expr::BinaryExpr { left, op, right } = part else { continue };
            if !op.is_comparison() {
                continue;
            }
            let (Some(first), Some(second)) = (type_of(left, schema), type_of(right, schema)) else { continue };
            if comparable(&first, &second) {
                continue;
            }
            let used = [left, right].into_iter().flat_map(|side| (**side).clone().meta().root_names()).next();
            let used = used.and_then(|name| self.columns.iter().find(|column| column.name == name.as_str()));
            let position = used.map_or(String::new(), |column| format!(" at character {}", column.position));
            let what = format!("compares {} with {}{position}", side(left, &first), side(right, &second));
            let is_text = |name: &str| schema.get(name).is_some_and(DataType::is_string);
            let found = used.filter(|column| is_text(&column.name));
            let found = found.and_then(|column| texts.iter().find(|(name, _)| *name == column.name));
            let why = found.map_or(String::new(), |(name, text)| {
                format!(
                    "; `{name}` is text because of `{}` in line {} of `{}`",
                    text.found,
                    text.line,
                    text.path.display()
                )
            });
            return Err(self.refuse(&format!("{what}{why}")));
        }
        Ok(())
    }

    fn refuse(&self, what: &str) -> Error {
        Error::Setting(format!("`preprocess.where` = {:?} {what}", self.text))
    }
}

/// The greatest number of AND, OR and arithmetic operators in a condition. Each is a level of the parsed expression, and polars handles an
/// expression by recursion, for which a thread has only so much room.
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

/// The columns of an expression with the positions of their first uses; the error says what is wrong with the expression and where.
fn columns(text: &str) -> std::result::Result<Vec<ColumnUse>, String> {
    let dialect = GenericDialect {};
    let position = |at: Location| character(text, at);
    let mut parser = Parser::new(&dialect).try_with_sql(text).map_err(|e| parse_error(&e, text))?;
    let expression = parser.parse_expr().map_err(|e| parse_error(&e, text))?;
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return Err(format!(
            "has `{}` at character {} where the condition should end",
            rest.token,
            position(rest.span.start)
        ));
    }
    let mut found: Vec<ColumnUse> = Vec::new();
    let mut problem = None;
    let _ = ast::visit_expressions(&expression, |part| {
        match part {
            ast::Expr::Identifier(name) if !found.iter().any(|column| column.name == name.value) => {
                found.push(ColumnUse { name: name.value.clone(), position: position(name.span.start) });
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
            let what = what.replace("Expected: ", "expected ").replace(", found: ", ", found `");
            let quote = if what.contains('`') { "`" } else { "" };
            format!("is not an SQL expression: {what}{quote} at character {}", character(text, at))
        }
        None => format!("is not an SQL expression: {message}"),
    }
}

/// The position of a character in `text`, from 1.
fn character(text: &str, at: Location) -> u64 {
    let before = text.split('\n').take(at.line.saturating_sub(1) as usize).map(|line| line.chars().count() as u64 + 1);
    before.sum::<u64>() + at.column
}

/// The expression as SQL computes it. Whole numbers get 64 bits and a sign before they are added, subtracted or multiplied, because narrow
/// and unsigned ones wrap in polars. A computed value that is not a number, such as 0 / 0, is missing, because polars orders it above all
/// numbers.
fn as_in_sql(expression: Expr, schema: &SchemaRef) -> Expr {
    let widened = |side: Arc<Expr>| match type_of(&side, schema) {
        Some(kind) if kind.is_integer() && kind != DataType::Int64 => Arc::new((*side).clone().cast(DataType::Int64)),
        _ => side,
    };
    let or_missing = |side: Arc<Expr>| match (&*side, type_of(&side, schema)) {
        // Columns hold nulls already.
        (Expr::Column(_) | Expr::Literal(_), _) => side,
        (_, Some(kind)) if kind.is_float() => Arc::new((*side).clone().fill_nan(lit(NULL))),
        _ => side,
    };
    expression.map_expr(|part| match part {
        Expr::BinaryExpr { left, op, right } if op.is_arithmetic() => {
            Expr::BinaryExpr { left: widened(left), op, right: widened(right) }
        }
        Expr::BinaryExpr { left, op, right } if op.is_comparison() => {
            Expr::BinaryExpr { left: or_missing(left), op, right: or_missing(right) }
        }
        Expr::Agg(AggExpr::Mean(input)) => Expr::Agg(AggExpr::Mean(or_missing(input))),
        Expr::Agg(AggExpr::Sum(input)) => Expr::Agg(AggExpr::Sum(or_missing(input))),
        part => part,
    })
}

fn type_of(part: &Expr, schema: &SchemaRef) -> Option<DataType> {
    let schema = DataFrame::empty_with_schema(schema).lazy().select([part.clone().alias("part")]).collect_schema();
    schema.ok()?.get("part").cloned()
}

fn comparable(first: &DataType, second: &DataType) -> bool {
    let is_text = |kind: &DataType| matches!(kind, DataType::String | DataType::Categorical(..) | DataType::Enum(..));
    let same = (is_text(first) && is_text(second))
        || (first.is_primitive_numeric() || first.is_decimal())
            && (second.is_primitive_numeric() || second.is_decimal())
        || (first.is_temporal() && second.is_temporal())
        || first.is_bool() && second.is_bool();
    same || first == second || first.is_null() || second.is_null()
}

fn side(part: &Expr, kind_of: &DataType) -> String {
    match part {
        Expr::Column(name) => format!("`{name}`, which is {},", kind(kind_of)),
        _ => kind(kind_of).to_owned(),
    }
}

fn kind(kind: &DataType) -> &'static str {
    match kind {
        DataType::String | DataType::Categorical(..) | DataType::Enum(..) => "text",
        DataType::Boolean => "true or false",
        kind if kind.is_integer() => "a whole number",
        kind if kind.is_primitive_numeric() || kind.is_decimal() => "a number",
        DataType::Date => "a date",
        kind if kind.is_temporal() => "a time",
        _ => "a list or an object",
    }
}

fn first_line(error: &PolarsError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
