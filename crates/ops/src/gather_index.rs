//! Which item each row of a batch belongs to, for gathering rows and adding their gradients.

use std::sync::{Arc, OnceLock};

/// Maps each occurrence of an item to the item, and each item to its occurrences.
#[derive(Clone, Debug)]
pub struct GatherIndex {
    item_of: Arc<Vec<u32>>,
    items: usize,
    /// Computed on first access: on a GPU, only backward needs it, and the GPU computes in the meantime.
    order: Arc<OnceLock<Order>>,
    /// The numbers of the uses, if they differ from their indices.
    numbers: Option<Arc<Vec<u32>>>,
}

/// The uses of each item.
#[derive(Debug)]
struct Order {
    /// The start of each item's uses in the order by item, then the end of the last.
    starts: Vec<u32>,
    /// The uses, item by item.
    by_item: Vec<u32>,
}

impl Order {
    fn new(item_of: &[u32], items: usize) -> Self {
        let mut starts = vec![0u32; items + 1];
        item_of.iter().for_each(|&i| starts[i as usize + 1] += 1);
        for i in 0..items {
            starts[i + 1] += starts[i];
        }
        let mut next = starts.clone();
        let mut by_item = vec![0u32; item_of.len()];
        for (occurrence, &item) in item_of.iter().enumerate() {
            by_item[next[item as usize] as usize] = occurrence as u32;
            next[item as usize] += 1;
        }
        Self { starts, by_item }
    }
}

impl GatherIndex {
    /// Builds the index from the item of each use, which is one of `items`.
    pub fn new(item_of: Vec<u32>, items: usize) -> Self {
        Self { item_of: Arc::new(item_of), items, order: Arc::default(), numbers: None }
    }

    fn order(&self) -> &Order {
        self.order.get_or_init(|| Order::new(&self.item_of, self.items))
    }

    /// The same uses with explicit numbers, by which their dropout is drawn: the numbers that they have in a batch of which these are a
    /// share.
    #[must_use]
    pub fn numbered(self, numbers: Vec<u32>) -> Self {
        Self { numbers: Some(Arc::new(numbers)), ..self }
    }

    /// The number of a use.
    pub(crate) fn number(&self, occurrence: usize) -> usize {
        self.numbers.as_ref().map_or(occurrence, |numbers| numbers[occurrence] as usize)
    }

    /// One use of every item, in order.
    pub fn each_once(items: usize) -> Self {
        Self::new((0..items as u32).collect(), items)
    }

    /// The number of uses.
    pub fn count(&self) -> usize {
        self.item_of.len()
    }

    /// The number of items.
    pub fn items(&self) -> usize {
        self.items
    }

    /// Whether use i is of item i, without further uses or explicit numbers.
    pub(crate) fn are_each_once(&self) -> bool {
        self.numbers.is_none()
            && self.count() == self.items()
            && self.item_of.iter().zip(0..).all(|(&item, at)| item == at)
    }

    /// The item of every use.
    pub fn item_of(&self) -> &[u32] {
        &self.item_of
    }

    /// The start of each item's uses in the order by item, then the end of the last.
    #[cfg(feature = "cuda")]
    pub(crate) fn starts(&self) -> &[u32] {
        &self.order().starts
    }

    /// The uses, item by item.
    #[cfg(feature = "cuda")]
    pub(crate) fn by_item(&self) -> &[u32] {
        &self.order().by_item
    }

    /// The uses of item `i`, in order.
    pub fn of(&self, i: usize) -> &[u32] {
        let Order { starts, by_item } = self.order();
        &by_item[starts[i] as usize..starts[i + 1] as usize]
    }
}
