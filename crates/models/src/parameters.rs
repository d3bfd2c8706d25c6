//! The trained parameters of a model, and how they are drawn, stored and divided among processes.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use std::ops::Range;

use mp4sr_ops::{AdamState, Error, ProcessGroup, Result, RngKey};

/// A parameter's name, values and shape, as it is stored.
pub type Stored = (String, Vec<f32>, Vec<usize>);

/// The initial values of a parameter.
#[derive(Clone, Copy, Debug)]
pub enum Initial {
    /// N(0, 0.02).
    Normal,
    /// N(0, s) with the given standard deviation s.
    Scaled(f64),
    /// U(-1/sqrt(d), 1/sqrt(d)) with d the input width.
    Uniform(usize),
    /// U(-b, b) with the given bound b.
    Within(f64),
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
}

impl Initial {
    /// The initial values at the indices `numbers` of the whole parameter.
    fn values(self, numbers: Range<usize>, key: RngKey) -> Vec<f32> {
        let count = numbers.len();
        let numbers = numbers.start as u64..numbers.end as u64;
        match self {
            Self::Normal => numbers.map(|i| (DEVIATION * key.normal(i)) as f32).collect(),
            Self::Scaled(deviation) => numbers.map(|i| (deviation * key.normal(i)) as f32).collect(),
            Self::Uniform(width) => uniform(key, numbers, 1.0 / (width as f64).sqrt()),
            Self::Within(bound) => uniform(key, numbers, bound),
            Self::Zeros => vec![0.0; count],
            Self::Ones => vec![1.0; count],
        }
    }
}

const DEVIATION: f64 = 0.02;

fn no_parameter(name: &str) -> Error {
    Error::Msg(format!("the model has no parameter `{name}`"))
}

fn uniform(key: RngKey, numbers: Range<u64>, bound: f64) -> Vec<f32> {
    numbers.map(|i| (bound * (2.0 * key.uniform(i) - 1.0)) as f32).collect()
}

/// A parameter that shares a variable with others, because an operator takes them together.
#[derive(Clone, Debug)]
pub struct PackedParameter {
    /// The name of the parameter.
    pub name: String,
    /// The shape of the parameter.
    pub shape: Vec<usize>,
    /// The initial values.
    pub initial: Initial,
    /// The index of its first value in the variable.
    pub start: usize,
    /// The distance between the starts of its rows in the variable; `None` if the rows are contiguous.
    pub stride: Option<usize>,
}

#[derive(Clone, Debug)]
struct ParameterEntry {
    name: String,
    shape: Vec<usize>,
    /// The index of its variable.
    var: usize,
    start: usize,
    /// The number of values in a row.
    columns: usize,
    /// The distance between the starts of rows.
    stride: usize,
    /// The rows of each process, if the parameter is divided among a group; `shape` is then that of this process's rows.
    shard: Option<RowDivision>,
}

/// The share that a process of a group has of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableShare {
    /// The shape of the whole table.
    pub whole_shape: Vec<usize>,
    /// The shape of this process's rows.
    pub own_shape: Vec<usize>,
    /// The range of this process's values among those of the whole table.
    pub own: Range<usize>,
    /// The number of values of each process.
    pub lengths: Vec<usize>,
}

/// The division of a parameter's rows among the processes of a group.
#[derive(Clone, Debug)]
struct RowDivision {
    group: ProcessGroup,
    rows: Vec<Range<usize>>,
}

impl ParameterEntry {
    /// The shape of the whole parameter.
    fn whole_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some(RowDivision { rows, .. }) = &self.shard {
            shape[0] = rows.last().map_or(0, |rows| rows.end);
        }
        shape
    }

    /// Selects the values of this process's rows from `values`, which are those of the whole parameter or only of these rows.
    fn own_values<'a>(&self, values: &'a [f32]) -> &'a [f32] {
        match &self.shard {
            Some(RowDivision { group, rows }) if values.len() == self.whole_shape().iter().product::<usize>() => {
                let rows = &rows[group.rank()];
                &values[rows.start * self.columns..rows.end * self.columns]
            }
            _ => values,
        }
    }

    /// Gathers the values of the whole parameter on the first process, from the rows of all processes; the other processes get none.
    fn whole_values(&self, own: Vec<f32>) -> Result<Vec<f32>> {
        let Some(RowDivision { group, rows }) = &self.shard else { return Ok(own) };
        let lengths: Vec<usize> = rows.iter().map(|rows| rows.len() * self.columns).collect();
        group.gather_to_first("tables to store", &own, &lengths)
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The rows of the parameter among the values of its variable.
    fn own_rows<'a, T>(&self, all: &'a [T]) -> impl Iterator<Item = &'a [T]> {
        let (start, columns, stride) = (self.start, self.columns, self.stride);
        let rows = self.count().checked_div(columns).unwrap_or(0);
        (0..rows).map(move |row| &all[start + row * stride..][..columns])
    }

    fn values(&self, all: &[f32]) -> Vec<f32> {
        self.own_rows(all).flatten().copied().collect()
    }

    fn put(&self, all: &mut [f32], values: &[f32]) {
        for (row, values) in values.chunks(self.columns.max(1)).enumerate() {
            all[self.start + row * self.stride..][..values.len()].copy_from_slice(values);
        }
    }
}

/// Named parameters in the order in which they were added. Several can share a variable.
#[derive(Debug)]
pub struct Parameters {
    device: Device,
    entries: Vec<ParameterEntry>,
    vars: Vec<Var>,
}

/// An empty set of parameters on the CPU.
impl Default for Parameters {
    fn default() -> Self {
        Self::new(&Device::Cpu)
    }
}

impl Parameters {
    /// Creates an empty set of parameters on a device.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), entries: Vec::new(), vars: Vec::new() }
    }

    /// The device of the parameters.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Adds a parameter whose initial values depend only on the key and its name.
    pub fn add(&mut self, name: &str, shape: &[usize], initial: Initial, key: RngKey) -> Result<Var> {
        let part = PackedParameter { name: name.to_owned(), shape: shape.to_vec(), initial, start: 0, stride: None };
        self.add_packed(shape, &[part], key)
    }

    /// Adds parameters that share a variable of the given shape, which they must fill. The initial values of each depend only on the key
    /// and its name.
    pub fn add_packed(&mut self, shape: &[usize], parts: &[PackedParameter], key: RngKey) -> Result<Var> {
        let mut values = vec![0.0; shape.iter().product()];
        let mut filled = 0;
        for PackedParameter { name, shape, initial, start, stride } in parts {
            let columns = shape.iter().skip(1).product::<usize>().max(1);
            let columns = if shape.len() < 2 { shape.iter().product() } else { columns };
            let entry = ParameterEntry {
                name: name.clone(),
                shape: shape.clone(),
                var: self.vars.len(),
                start: *start,
                columns,
                stride: stride.unwrap_or(columns),
                shard: None,
            };
            entry.put(&mut values, &initial.values(0..entry.count(), key.fold_in(name)));
            filled += entry.count();
            self.entries.push(entry);
        }
        if filled != values.len() {
            return Err(Error::Msg(format!("parameters of {filled} values in a variable of {}", values.len())));
        }
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, &self.device)?)?;
        self.vars.push(var.clone());
        Ok(var)
    }

    /// Adds a table of `[rows, columns]` with the same initial values as [`add`](Self::add). In a group, every process has a range of the
    /// rows: the rows of the items are divided evenly, and the first process also has the rows before them.
    pub fn add_table(
        &mut self,
        name: &str,
        [rows, columns]: [usize; 2],
        items: usize,
        initial: Initial,
        key: RngKey,
        group: Option<&ProcessGroup>,
    ) -> Result<Var> {
        let Some(group) = group else { return self.add(name, &[rows, columns], initial, key) };
        let before = rows - items;
        let rows_of =
            |own: Range<usize>| if own.start == 0 { 0..before + own.end } else { before + own.start..before + own.end };
        let shares: Vec<Range<usize>> = group.shares(items).into_iter().map(rows_of).collect();
        let own = shares[group.rank()].clone();
        let values = initial.values(own.start * columns..own.end * columns, key.fold_in(name));
        let var = Var::from_tensor(&Tensor::from_vec(values, (own.len(), columns), &self.device)?)?;
        self.entries.push(ParameterEntry {
            name: name.to_owned(),
            shape: vec![own.len(), columns],
            var: self.vars.len(),
            start: 0,
            columns,
            stride: columns,
            shard: Some(RowDivision { group: group.clone(), rows: shares }),
        });
        self.vars.push(var.clone());
        Ok(var)
    }

    /// The rows of a table that each process of the group has; `None` for a parameter that is not divided.
    pub fn table_rows(&self, name: &str) -> Option<&[Range<usize>]> {
        self.entry(name)?.shard.as_ref().map(|shard| &shard.rows[..])
    }

    /// This process's share of a table; `None` for a parameter that is not divided.
    pub fn table_share(&self, name: &str) -> Option<TableShare> {
        let entry = self.entry(name)?;
        let RowDivision { group, rows } = entry.shard.as_ref()?;
        let own = &rows[group.rank()];
        Some(TableShare {
            whole_shape: entry.whole_shape(),
            own_shape: entry.shape.clone(),
            own: own.start * entry.columns..own.end * entry.columns,
            lengths: rows.iter().map(|rows| rows.len() * entry.columns).collect(),
        })
    }

    /// Whether a variable is divided by rows among the processes of the group.
    pub fn is_shard(&self, var: &Var) -> bool {
        let shards = self.entries.iter().filter(|entry| entry.shard.is_some());
        shards.map(|entry| self.vars[entry.var].as_tensor().id()).any(|id| id == var.as_tensor().id())
    }

    /// The names of the parameters, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    fn entry(&self, name: &str) -> Option<&ParameterEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// A parameter, as an expression of its variable.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        let entry = self.entry(name)?;
        let var = self.vars[entry.var].as_tensor();
        Self::cut(entry, var).ok()
    }

    /// Cuts a parameter's part out of a tensor that has the layout of its variable.
    fn cut(entry: &ParameterEntry, whole: &Tensor) -> Result<Tensor> {
        if whole.elem_count() == entry.count() {
            return whole.reshape(entry.shape.as_slice());
        }
        if entry.stride == entry.columns {
            return whole.flatten_all()?.narrow(0, entry.start, entry.count())?.reshape(entry.shape.as_slice());
        }
        // The rows are not contiguous: whole rows at the distance of `stride` are read, of which some columns belong to the parameter.
        let (rows, first) = (entry.count() / entry.columns, entry.start % entry.stride);
        let block = whole.flatten_all()?.narrow(0, entry.start - first, rows * entry.stride)?;
        let block = block.reshape((rows, entry.stride))?.narrow(1, first, entry.columns)?.contiguous()?;
        block.reshape(entry.shape.as_slice())
    }

    /// The variables that hold the parameters for which `chosen` is true, in order. Returns an error if only some parameters of a variable
    /// are chosen.
    pub fn variables(&self, chosen: impl Fn(&str) -> bool) -> Result<Vec<Var>> {
        let mut found = Vec::new();
        for (at, var) in self.vars.iter().enumerate() {
            let own: Vec<bool> = self.entries.iter().filter(|e| e.var == at).map(|e| chosen(&e.name)).collect();
            if own.iter().any(|&chosen| chosen != own[0]) {
                let first = self.entries.iter().find(|e| e.var == at).map_or("", |e| &e.name);
                return Err(Error::Msg(format!(
                    "some of the parameters that are stored with `{first}` are selected, others not"
                )));
            }
            if own.first() == Some(&true) {
                found.push(var.clone());
            }
        }
        Ok(found)
    }

    /// The gradient of every parameter that has one, by name, in the parameters' order.
    pub fn gradients(&self, gradients: &GradStore) -> Result<Vec<(&str, Tensor)>> {
        let with_gradient = self.entries.iter().filter_map(|entry| {
            let whole = gradients.get(self.vars[entry.var].as_tensor())?;
            Some(Self::cut(entry, whole).map(|gradient| (entry.name.as_str(), gradient)))
        });
        with_gradient.collect()
    }

    /// Splits the optimiser's state of `variables` into that of their parameters. Returns their names and states in the parameters' order.
    pub fn split_state(&self, variables: &[Var], state: &AdamState) -> (Vec<String>, AdamState) {
        let (mut names, mut split) = (Vec::new(), AdamState::default());
        for entry in &self.entries {
            let own = self.vars[entry.var].as_tensor().id();
            let Some(at) = variables.iter().position(|var| var.as_tensor().id() == own) else { continue };
            names.push(entry.name.clone());
            split.steps.push(state.steps[at]);
            split.first.push(entry.values(&state.first[at]));
            split.second.push(entry.values(&state.second[at]));
        }
        (names, split)
    }

    /// Joins the states of parameters, as [`Parameters::split_state`] returns them, into the state of `variables`.
    pub fn join_state(&self, variables: &[Var], split: &AdamState) -> Result<AdamState> {
        let mut state = AdamState::default();
        for var in variables {
            let zeros = vec![0.0; var.elem_count()];
            state.first.push(zeros.clone());
            state.second.push(zeros);
            state.steps.push(0);
        }
        let mut parts = split.steps.iter().zip(&split.first).zip(&split.second);
        for entry in &self.entries {
            let own = self.vars[entry.var].as_tensor().id();
            let Some(at) = variables.iter().position(|var| var.as_tensor().id() == own) else { continue };
            let part =
                parts.next().map(|((steps, first), second)| (steps, entry.own_values(first), entry.own_values(second)));
            let part = part.filter(|(_, first, second)| first.len() == entry.count() && second.len() == entry.count());
            let Some((&steps, first, second)) = part else {
                return Err(Error::Msg(format!(
                    "the optimiser's state of `{}` does not fit the parameter",
                    entry.name
                )));
            };
            state.steps[at] = steps;
            entry.put(&mut state.first[at], first);
            entry.put(&mut state.second[at], second);
        }
        Ok(state)
    }

    /// The number of values in all parameters.
    pub fn count(&self) -> usize {
        self.entries.iter().map(|entry| entry.whole_shape().iter().product::<usize>()).sum()
    }

    /// The values of every parameter. In a group, this is a collective operation: the first process gets whole tables, and the others get
    /// none of their values.
    pub fn values(&self) -> Result<Vec<Stored>> {
        let own = self.own_values()?.into_iter().zip(&self.entries);
        own.map(|((name, own, _), entry)| Ok((name, entry.whole_values(own)?, entry.whole_shape()))).collect()
    }

    /// Gathers values that belong to a whole parameter, such as its moments, from the part that each process has. This is a collective
    /// operation like [`values`](Self::values).
    pub fn whole_values(&self, name: &str, own: Vec<f32>) -> Result<Vec<f32>> {
        self.entry(name).ok_or_else(|| no_parameter(name))?.whole_values(own)
    }

    /// The values of every parameter; of a divided table, only those of this process's rows.
    pub fn own_values(&self) -> Result<Vec<Stored>> {
        let all = self.vars.iter().map(|var| var.flatten_all()?.to_vec1::<f32>()).collect::<Result<Vec<_>>>()?;
        let stored = |entry: &ParameterEntry| (entry.name.clone(), entry.values(&all[entry.var]), entry.shape.clone());
        Ok(self.entries.iter().map(stored).collect())
    }

    /// Replaces the values of one parameter. If a whole table is given, a process of a group takes its own rows.
    pub fn set(&self, name: &str, values: &[f32], shape: &[usize]) -> Result<()> {
        let entry = self.entry(name).ok_or_else(|| no_parameter(name))?;
        let whole = entry.whole_shape();
        if (whole != shape && entry.shape != shape) || values.len() != shape.iter().product::<usize>() {
            return Err(Error::Msg(format!("parameter `{name}`: expected {whole:?}, found {shape:?}")));
        }
        let values = entry.own_values(values);
        let var = &self.vars[entry.var];
        debug_assert_eq!(var.dtype(), DType::F32);
        if var.elem_count() == values.len() {
            return var.set(&Tensor::from_slice(values, var.shape(), &self.device)?);
        }
        let mut all = var.flatten_all()?.to_vec1::<f32>()?;
        entry.put(&mut all, values);
        var.set(&Tensor::from_vec(all, var.shape(), &self.device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [0 1 2 | 10 11] and [3 4 5 | 12 13], then 20 21: `a` and `b` are columns of the same rows.
    #[test]
    fn parameters_of_one_variable_are_set_read_and_differentiated_by_their_names() {
        let mut parameters = Parameters::default();
        let part = |name: &str, shape: &[usize], start: usize, stride: Option<usize>| PackedParameter {
            name: name.to_owned(),
            shape: shape.to_vec(),
            initial: Initial::Zeros,
            start,
            stride,
        };
        let parts = [part("a", &[2, 3], 0, Some(5)), part("b", &[2, 2], 3, Some(5)), part("c", &[2], 10, None)];
        let var = parameters.add_packed(&[12], &parts, RngKey::new(1)).unwrap();
        parameters.set("a", &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[2, 3]).unwrap();
        parameters.set("b", &[10.0, 11.0, 12.0, 13.0], &[2, 2]).unwrap();
        parameters.set("c", &[20.0, 21.0], &[2]).unwrap();
        let expected = [0.0, 1.0, 2.0, 10.0, 11.0, 3.0, 4.0, 5.0, 12.0, 13.0, 20.0, 21.0];
        assert_eq!(var.to_vec1::<f32>().unwrap(), expected);
        assert_eq!(parameters.values().unwrap()[1], ("b".to_owned(), vec![10.0, 11.0, 12.0, 13.0], vec![2, 2]));
        assert_eq!(parameters.get("b").unwrap().to_vec2::<f32>().unwrap(), [[10.0, 11.0], [12.0, 13.0]]);
        let gradients = (var.as_tensor() * var.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let gradients = parameters.gradients(&gradients).unwrap();
        assert_eq!(gradients[1].1.to_vec2::<f32>().unwrap(), [[20.0, 22.0], [24.0, 26.0]]);
        let vars = parameters.variables(|_| true).unwrap();
        let state = AdamState { steps: vec![7], first: vec![expected.to_vec()], second: vec![vec![1.0; 12]] };
        let (names, split) = parameters.split_state(&vars, &state);
        assert_eq!(
            (names.len(), &split.first[1][..], &split.steps[..]),
            (3, &[10.0, 11.0, 12.0, 13.0][..], &[7; 3][..])
        );
        assert_eq!(parameters.join_state(&vars, &split).unwrap(), state);
        assert!(parameters.variables(|name| name == "a").unwrap_err().to_string().contains("that are stored with `a`"));
        assert!(parameters.set("b", &[0.0; 4], &[4]).is_err());
        assert!(parameters.add_packed(&[3], &[part("d", &[2], 0, None)], RngKey::new(1)).is_err());
    }
}
