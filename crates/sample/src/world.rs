//! Items with latent attributes, and users whose taste drifts over them.

use rayon::prelude::*;

use crate::random::Rng;
use crate::vocabulary::{BRANDS, COLOURS, KINDS, PATTERNS, SHAPES, STYLES, USES};

/// The number of days that the shop has been open.
pub(crate) const DAYS: f64 = 1_000.0;
/// The number of items with usual sales.
const USUAL_ITEMS: usize = 1_690;
/// The number of items that hardly sell.
const RARE_ITEMS: usize = 40;
/// The number of users with enough events for the 5-core.
const USUAL_USERS: usize = 4_200;
/// The number of users with one to four events.
const SHORT_USERS: usize = 150;
/// The number of days for which an item counts as new.
const NOVELTY_DAYS: f64 = 60.0;

/// An item's latent attributes: indices into the vocabulary.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) asin: String,
    pub(crate) kind: usize,
    pub(crate) colour: usize,
    pub(crate) pattern: usize,
    pub(crate) shape: usize,
    pub(crate) brand: usize,
    pub(crate) material: usize,
    pub(crate) usage: usize,
    pub(crate) style: usize,
    pub(crate) price: f64,
    /// The day on which it appears in the shop.
    pub(crate) released: f64,
    /// The relative weight with which it is bought, before taste.
    pub(crate) popularity: f64,
}

/// One purchase that was reviewed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) user: usize,
    pub(crate) item: usize,
    /// The day, counted from the opening of the shop.
    pub(crate) day: u32,
    /// The number of attributes among colour, pattern, use and style that match the user's taste, 0 to 4.
    pub(crate) matches: u8,
}

/// The generated shop before it is written to files.
pub(crate) struct World {
    pub(crate) items: Vec<Item>,
    /// Each user's events in time order.
    pub(crate) users: Vec<Vec<Event>>,
    /// The Recall@10 of an oracle that knows the taste behind each usual user's last event.
    pub(crate) oracle_recall_10: f64,
}

/// An identifier of `length` upper-case letters and digits. Indices of one purpose have distinct identifiers if `length` is at least 8.
pub(crate) fn identifier(seed: u64, purpose: &str, index: usize, length: u32) -> String {
    // A multiplication by an odd constant modulo 2^40 permutes, so distinct indices give distinct identifiers.
    let offset = (Rng::new(seed, purpose, 0).unit() * (1_u64 << 39) as f64) as u64;
    let mut value = (index as u64 + 1).wrapping_mul(0x9e_3779_b97f).wrapping_add(offset) & ((1 << 40) - 1);
    (0..length)
        .map(|_| {
            let digit = (value % 36) as u8;
            value /= 36;
            char::from(if digit < 10 { b'0' + digit } else { b'A' + digit - 10 })
        })
        .collect()
}

fn make_items(seed: u64) -> Vec<Item> {
    (0..USUAL_ITEMS + RARE_ITEMS)
        .map(|index| {
            let mut rng = Rng::new(seed, "item", index);
            let kind = rng.below(KINDS.len());
            let [low, high] = KINDS[kind].price;
            let popularity = (0.75 * rng.normal()).exp();
            Item {
                asin: format!("B0{}", identifier(seed, "asin", index, 8)),
                kind,
                colour: rng.below(COLOURS.len()),
                pattern: rng.below(PATTERNS.len()),
                shape: rng.below(SHAPES.len()),
                brand: rng.below(BRANDS.len()),
                material: rng.below(3),
                usage: rng.below(USES.len()),
                style: rng.below(STYLES.len()),
                price: (low + (high - low) * rng.unit().powi(2)).floor() + 0.99,
                released: if rng.chance(0.6) { 0.0 } else { rng.range(0.0, 0.985 * DAYS) },
                popularity: if index < USUAL_ITEMS { popularity.max(0.3) } else { 0.03 },
            }
        })
        .collect()
}

/// What a user is looking for at the moment.
#[derive(Clone, Debug)]
struct Taste {
    colour: usize,
    pattern: usize,
    usage: usize,
    style: usize,
    brands: [usize; 2],
    shape: usize,
    /// The kind of the last item.
    last_kind: Option<usize>,
}

/// The factors by which an item's weight is multiplied: one for each attribute that matches the user's taste, and those for a kind that
/// follows or repeats the last kind, and for novelty.
mod weight {
    pub(super) const COLOUR: f64 = 22.0;
    pub(super) const PATTERN: f64 = 7.0;
    pub(super) const USE: f64 = 16.0;
    pub(super) const STYLE: f64 = 7.0;
    pub(super) const BRAND: f64 = 2.0;
    pub(super) const SHAPE: f64 = 1.6;
    pub(super) const NEXT_KIND: [f64; 2] = [12.0, 6.0];
    pub(super) const SAME_KIND: f64 = 0.3;
    pub(super) const NOVELTY: f64 = 3.0;
}

impl Taste {
    fn draw(rng: &mut Rng) -> Self {
        Self {
            colour: rng.below(COLOURS.len()),
            pattern: rng.below(PATTERNS.len()),
            usage: rng.below(USES.len()),
            style: rng.below(STYLES.len()),
            brands: [rng.below(BRANDS.len()), rng.below(BRANDS.len())],
            shape: rng.below(SHAPES.len()),
            last_kind: None,
        }
    }

    /// Moves the taste along fixed cycles, so that its direction can be learned.
    fn drift(&mut self, rng: &mut Rng) {
        let mut turn = |value: &mut usize, size: usize, chance: f64| {
            if rng.chance(chance) {
                *value = (*value + 1) % size;
            }
        };
        turn(&mut self.colour, COLOURS.len(), 0.2);
        turn(&mut self.pattern, PATTERNS.len(), 0.1);
        turn(&mut self.usage, USES.len(), 0.18);
        turn(&mut self.style, STYLES.len(), 0.1);
    }

    fn matches(&self, item: &Item) -> u8 {
        u8::from(item.colour == self.colour)
            + u8::from(item.pattern == self.pattern)
            + u8::from(item.usage == self.usage)
            + u8::from(item.style == self.style)
    }

    fn weigh(&self, item: &Item, day: f64) -> f64 {
        if item.released > day {
            return 0.0;
        }
        let mut w = item.popularity;
        let mut favour = |holds: bool, factor: f64| {
            if holds {
                w *= factor;
            }
        };
        favour(item.colour == self.colour, weight::COLOUR);
        favour(item.pattern == self.pattern, weight::PATTERN);
        favour(item.usage == self.usage, weight::USE);
        favour(item.style == self.style, weight::STYLE);
        favour(self.brands.contains(&item.brand), weight::BRAND);
        favour(item.shape == self.shape, weight::SHAPE);
        favour(item.released > 0.0 && day - item.released < NOVELTY_DAYS, weight::NOVELTY);
        if let Some(last) = self.last_kind {
            let [first, second] = KINDS[last].next;
            favour(item.kind == first, weight::NEXT_KIND[0]);
            favour(item.kind == second, weight::NEXT_KIND[1]);
            favour(item.kind == last, weight::SAME_KIND);
        }
        w
    }
}

/// The events of one user, and the number of items that were at least as likely as the last one. Only usual users have such a number.
struct Purchases {
    events: Vec<Event>,
    oracle_rank: Option<usize>,
}

/// Draws the world of `seed`. Every user has their own random numbers, so that threads do not change the world.
pub(crate) fn draw(seed: u64) -> World {
    let items = make_items(seed);
    let of_user = |weights: &mut Vec<f64>, user: usize| draw_purchases(seed, user, &items, weights);
    let all: Vec<Purchases> =
        (0..USUAL_USERS + SHORT_USERS).into_par_iter().map_init(|| vec![0.0; items.len()], of_user).collect();
    let ranks: Vec<usize> = all.iter().filter_map(|purchases| purchases.oracle_rank).collect();
    let hits = ranks.iter().filter(|&&rank| rank <= 10).count();
    let users = all.into_iter().map(|purchases| purchases.events).collect();
    World { items, users, oracle_recall_10: hits as f64 / ranks.len().max(1) as f64 }
}

/// Draws the events of one user. `weights` has room for one number per item.
fn draw_purchases(seed: u64, user: usize, items: &[Item], weights: &mut [f64]) -> Purchases {
    let mut rng = Rng::new(seed, "user", user);
    let length = if user < USUAL_USERS {
        // One event more than the 5-core requires, so that dropping a rare item does not drop its buyers.
        6 + rng.exponential(4.9).floor().min(44.0) as usize
    } else {
        1 + rng.below(4)
    };
    let mut taste = Taste::draw(&mut rng);
    let mut day = rng.range(0.0, 0.9 * DAYS);
    let mut purchases = Purchases { events: Vec::with_capacity(length), oracle_rank: None };
    for position in 0..length {
        let mut total = 0.0;
        for (weight, item) in weights.iter_mut().zip(items) {
            *weight = taste.weigh(item, day);
            total += *weight;
        }
        for event in &purchases.events {
            total -= std::mem::take(&mut weights[event.item]);
        }
        let mut left = rng.unit() * total;
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding errors can leave a small rest after the last item.
        let Some(chosen) = chosen.or_else(|| weights.iter().rposition(|weight| *weight > 0.0)) else { break };
        if position + 1 == length && user < USUAL_USERS {
            purchases.oracle_rank = Some(weights.iter().filter(|weight| **weight >= weights[chosen]).count());
        }
        let matches = taste.matches(&items[chosen]);
        purchases.events.push(Event { user, item: chosen, day: day as u32, matches });
        taste.last_kind = Some(items[chosen].kind);
        taste.drift(&mut rng);
        // At least a day passes, so that a user's order never depends on the order of lines in the file.
        day += 1.0 + rng.exponential(7.0);
    }
    purchases
}

/// The numbers of users, items and events in the 5-core of distinct (user, item) pairs.
pub(crate) fn five_core(pairs: &[(usize, usize)], users: usize, items: usize) -> [usize; 3] {
    let (mut kept_users, mut kept_items) = (vec![true; users], vec![true; items]);
    loop {
        let (mut by_user, mut by_item) = (vec![0_usize; users], vec![0_usize; items]);
        let mut events = 0;
        for &(user, item) in pairs.iter().filter(|(user, item)| kept_users[*user] && kept_items[*item]) {
            by_user[user] += 1;
            by_item[item] += 1;
            events += 1;
        }
        let before = (kept_users.clone(), kept_items.clone());
        kept_users.iter_mut().zip(&by_user).for_each(|(kept, count)| *kept = *count >= 5);
        kept_items.iter_mut().zip(&by_item).for_each(|(kept, count)| *kept = *count >= 5);
        if before == (kept_users.clone(), kept_items.clone()) {
            let count = |kept: &[bool]| kept.iter().filter(|kept| **kept).count();
            return [count(&kept_users), count(&kept_items), events];
        }
    }
}
