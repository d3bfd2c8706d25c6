//! The edges of a bipartite graph, grouped by the nodes at either end.

use std::sync::Arc;

use candle_core::{Result, bail};

/// The edges of a graph between row nodes and column nodes, in the order of their rows, then columns.
#[derive(Clone, Debug)]
pub struct Edges {
    inner: Arc<Inner>,
}

/// One of the two sides of [`Edges`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The row nodes, by which the edges are ordered.
    Rows,
    /// The column nodes.
    Columns,
}

#[derive(Debug)]
struct Inner {
    /// The edges by node, in the order of the other ends.
    rows: NodeEdges,
    columns: NodeEdges,
}

/// The edges of the nodes of one side: node v owns the entries `offsets[v]..offsets[v + 1]`.
#[derive(Debug)]
pub(crate) struct NodeEdges {
    pub(crate) offsets: Vec<usize>,
    /// The edge of every entry.
    pub(crate) edges: Vec<u32>,
    /// The node at the other end of every entry's edge.
    pub(crate) others: Vec<u32>,
}

impl NodeEdges {
    pub(crate) fn count(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Runs of nodes with about `edges` edges each. They depend on the graph alone.
    pub(crate) fn shards(&self, edges: usize) -> Vec<std::ops::Range<usize>> {
        let (mut shards, mut start) = (Vec::new(), 0);
        for node in 0..self.count() {
            // A node without edges has a cost too, because its result is written.
            let held = self.offsets[node + 1] - self.offsets[start] + (node + 1 - start);
            if held >= edges || node + 1 == self.count() {
                shards.push(start..node + 1);
                start = node + 1;
            }
        }
        shards
    }
}

impl Edges {
    /// Builds the edges from the columns of every row node, which ascend without repetition and are less than `columns`.
    pub fn new(rows: &[Vec<u32>], columns: usize) -> Result<Self> {
        let mut offsets = vec![0];
        let mut others = Vec::new();
        for own in rows {
            if own.windows(2).any(|pair| pair[0] >= pair[1]) || own.last().is_some_and(|&last| last as usize >= columns)
            {
                bail!("edges: columns of a row must ascend below {columns}, found {own:?}");
            }
            others.extend_from_slice(own);
            offsets.push(others.len());
        }
        let mut starts = vec![0usize; columns + 1];
        others.iter().for_each(|&column| starts[column as usize + 1] += 1);
        for column in 0..columns {
            starts[column + 1] += starts[column];
        }
        let (mut next, mut edges, mut row_of) = (starts.clone(), vec![0; others.len()], vec![0; others.len()]);
        let ends = rows.iter().zip(0u32..).flat_map(|(own, row)| own.iter().map(move |&column| (row, column)));
        for ((row, column), edge) in ends.zip(0u32..) {
            let index = &mut next[column as usize];
            (edges[*index], row_of[*index]) = (edge, row);
            *index += 1;
        }
        let rows = NodeEdges { offsets, edges: (0..others.len() as u32).collect(), others };
        let columns = NodeEdges { offsets: starts, edges, others: row_of };
        Ok(Self { inner: Arc::new(Inner { rows, columns }) })
    }

    /// The number of edges.
    pub fn count(&self) -> usize {
        self.inner.rows.edges.len()
    }

    /// The number of nodes of a side.
    pub fn nodes(&self, side: Side) -> usize {
        self.of(side).count()
    }

    /// The node of a side at the end of every edge, in the order of the edges.
    pub fn ends(&self, side: Side) -> Vec<u32> {
        match side {
            Side::Rows => {
                let rows = &self.inner.rows;
                (0..rows.count()).flat_map(|row| vec![row as u32; rows.offsets[row + 1] - rows.offsets[row]]).collect()
            }
            Side::Columns => self.inner.rows.others.clone(),
        }
    }

    pub(crate) fn of(&self, side: Side) -> &NodeEdges {
        match side {
            Side::Rows => &self.inner.rows,
            Side::Columns => &self.inner.columns,
        }
    }
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Rows => Self::Columns,
            Self::Columns => Self::Rows,
        }
    }
}
