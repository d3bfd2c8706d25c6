//! Expressions of polars, changed to compute what SQL defines.

use polars::chunked_array::ops::arity::broadcast_try_binary_elementwise;
use polars::prelude::*;

/// The expression as SQL computes it. Whole numbers have 64 bits and a sign, because narrow and unsigned ones wrap in polars, and a result
/// that needs more is an error. Powers are fractions, and a remainder has the sign of the dividend. A computed value that is not a finite
/// number, such as that of a division by 0, is missing. Positions in texts count characters.
pub fn as_in_sql(expression: Expr, schema: &SchemaRef) -> Expr {
    let has_type = |part: &Expr, is: fn(&DataType) -> bool| type_of(part, schema).is_some_and(|kind| is(&kind));
    let is_whole = |part: &Expr| has_type(part, DataType::is_integer);
    let has_number = |part: &Expr| has_type(part, |kind| kind.is_primitive_numeric() || kind.is_known());
    let or_missing = |part: Expr| match type_of(&part, schema) {
        Some(kind) if kind.is_float() => {
            // Logarithms of whole numbers have no type until they are computed, with 64 bits.
            let known = |kind: &DataType| if kind.is_known() { kind.clone() } else { DataType::Float64 };
            let field = move |_: &Schema, field: &Field| Ok(Field::new(field.name().clone(), known(field.dtype())));
            part.map(|values| missing_where_not_finite(&values), field)
        }
        Some(kind) if kind.is_integer() && kind != DataType::Int64 => part.strict_cast(DataType::Int64),
        _ => part,
    };
    let as_fraction = |part: Expr| if is_whole(&part) { part.cast(DataType::Float64) } else { part };
    expression.map_expr(|part| match part {
        Expr::BinaryExpr {
            left,
            op: op @ (Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Modulus),
            right,
        } if is_whole(&left) && is_whole(&right) => exactly((*left).clone(), op, (*right).clone()),
        Expr::BinaryExpr { left, op: Operator::Modulus, right } if has_number(&left) && has_number(&right) => {
            remainder((*left).clone(), (*right).clone())
        }
        Expr::BinaryExpr { op, .. } if op.is_arithmetic() => or_missing(part),
        Expr::Agg(AggExpr::Sum(values)) if is_whole(&values) => exact_sum((*values).clone(), Expr::sum),
        Expr::Function { input, function: FunctionExpr::CumSum { reverse } } if is_whole(&input[0]) => {
            exact_sum(input[0].clone(), |half| half.cum_sum(reverse))
        }
        Expr::Function { input, function: function @ FunctionExpr::Pow(PowFunction::Generic) } => {
            or_missing(Expr::Function { input: input.into_iter().map(as_fraction).collect(), function })
        }
        // polars compares a column of 32 bits with single numbers in 32 bits, but with a list in 64.
        Expr::Function { mut input, function: function @ FunctionExpr::Boolean(BooleanFunction::IsIn { .. }) }
            if has_type(&input[0], |kind| matches!(kind, DataType::Float16 | DataType::Float32)) =>
        {
            input[0] = input[0].clone().cast(DataType::String).cast(DataType::Float64);
            Expr::Function { input, function }
        }
        Expr::Function { input, function: FunctionExpr::StringExpr(StringFunction::Find { .. }) } => {
            characters_before(input[0].clone(), input[1].clone())
        }
        // Columns hold nulls already.
        Expr::Function { .. } | Expr::Cast { .. } => or_missing(part),
        part => part,
    })
}

/// The sum, difference, product or remainder of whole numbers, or an error if it needs more than 64 bits.
fn exactly(left: Expr, op: Operator, right: Expr) -> Expr {
    let compute = move |sides: &mut [Column]| {
        let name = sides[0].name().clone();
        let (left, right) = (sides[0].i64()?, sides[1].i64()?);
        let computed: Int64Chunked = broadcast_try_binary_elementwise(left, right, |left, right| {
            let Some((left, right)) = left.zip(right) else { return Ok(None) };
            let result = match op {
                Operator::Plus => left.checked_add(right),
                Operator::Minus => left.checked_sub(right),
                Operator::Multiply => left.checked_mul(right),
                // A remainder of a division by 0 is missing.
                _ => return Ok((right != 0).then(|| left.wrapping_rem(right))),
            };
            let remedy = "convert one side, as in `CAST(price AS DOUBLE)`";
            let beyond = || polars_err!(ComputeError: "{left} {op} {right} needs more than 64 bits; {remedy}");
            result.map(Some).ok_or_else(beyond)
        })?;
        Ok(computed.with_name(name).into_column())
    };
    let sides = [left, right].map(|side| side.strict_cast(DataType::Int64));
    let field = |_: &Schema, sides: &[Field]| Ok(Field::new(sides[0].name().clone(), DataType::Int64));
    map_multiple(compute, sides, field)
}

/// The sum or cumulative sum of whole numbers, or an error if it needs more than 64 bits.
fn exact_sum(values: Expr, sum: impl Fn(Expr) -> Expr) -> Expr {
    // Up to 2^31 values, neither the sum of the upper halves nor that of the lower ones overflows. Each is computed by polars, so a sum
    // needs no column in memory.
    const LOWER: i64 = 1 << 32;
    let values = values.strict_cast(DataType::Int64);
    let upper = values.clone().floor_div(lit(LOWER));
    let lower = values - upper.clone() * lit(LOWER);
    let join = |halves: &mut [Column]| {
        let name = halves[0].name().clone();
        let (upper, lower) = (halves[0].i64()?, halves[1].i64()?);
        let joined: Int64Chunked = broadcast_try_binary_elementwise(upper, lower, |upper, lower| {
            let Some((upper, lower)) = upper.zip(lower) else { return Ok(None) };
            let sum = i128::from(upper) * i128::from(LOWER) + i128::from(lower);
            let remedy = "convert the values, as in `SUM(CAST(price AS DOUBLE))`";
            let beyond = |_| polars_err!(ComputeError: "the sum {sum} needs more than 64 bits; {remedy}");
            i64::try_from(sum).map(Some).map_err(beyond)
        })?;
        Ok(joined.with_name(name).into_column())
    };
    let field = |_: &Schema, halves: &[Field]| Ok(Field::new(halves[0].name().clone(), DataType::Int64));
    map_multiple(join, [upper, lower].map(sum), field)
}

/// The remainder of fractions with the sign of the dividend; missing if the divisor is 0.
fn remainder(left: Expr, right: Expr) -> Expr {
    let compute = |sides: &mut [Column]| {
        let name = sides[0].name().clone();
        let computed: Float64Chunked =
            broadcast_try_binary_elementwise(sides[0].f64()?, sides[1].f64()?, |left, right| {
                PolarsResult::Ok(
                    left.zip(right).map(|(left, right): (f64, f64)| left % right).filter(|rest| rest.is_finite()),
                )
            })?;
        Ok(computed.with_name(name).into_column())
    };
    let sides = [left, right].map(|side| side.strict_cast(DataType::Float64));
    let field = |_: &Schema, sides: &[Field]| Ok(Field::new(sides[0].name().clone(), DataType::Float64));
    map_multiple(compute, sides, field)
}

/// The number of characters before the first occurrence of `part` in `text`, of which polars counts the bytes; missing if there is none.
fn characters_before(text: Expr, part: Expr) -> Expr {
    let compute = |sides: &mut [Column]| {
        let name = sides[0].name().clone();
        let computed: UInt32Chunked = broadcast_try_binary_elementwise(
            sides[0].str()?,
            sides[1].str()?,
            |text: Option<&str>, part: Option<&str>| {
                let before = text.zip(part).and_then(|(text, part)| text.split_once(part)).map(|(before, _)| before);
                PolarsResult::Ok(before.map(|before| before.chars().count() as u32))
            },
        )?;
        Ok(computed.with_name(name).into_column())
    };
    let field = |_: &Schema, sides: &[Field]| Ok(Field::new(sides[0].name().clone(), DataType::UInt32));
    map_multiple(compute, [text, part], field)
}

fn missing_where_not_finite(values: &Column) -> PolarsResult<Column> {
    let is_finite = values.is_finite()?;
    values.zip_with(&is_finite, &Column::full_null(values.name().clone(), values.len(), values.dtype()))
}

/// The type of the values of a part; `None` if it is not known without evaluating the part.
pub fn type_of(part: &Expr, schema: &SchemaRef) -> Option<DataType> {
    let schema = DataFrame::empty_with_schema(schema).lazy().select([part.clone().alias("part")]).collect_schema();
    schema.ok()?.get("part").cloned()
}
