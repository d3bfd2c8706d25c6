//! The list of all models, from which the configuration, the program and the studies take theirs.

use crate::recipe::Recipe;
use crate::{
    cl4srec, clcrec, difsr, dualgnn, esasrec, fdsa, grcn, lightgcn, masr, mp4sr, mvrnn, popularity, s3rec, sasrec,
    sine, unisrec,
};

/// All models; the first is the default of a pipeline that names none.
pub static RECIPES: [&Recipe; 16] = [
    &mp4sr::RECIPE,
    &popularity::RECIPE,
    &lightgcn::RECIPE,
    &sasrec::RECIPE,
    &esasrec::RECIPE,
    &cl4srec::RECIPE,
    &sine::RECIPE,
    &fdsa::RECIPE,
    &difsr::RECIPE,
    &unisrec::RECIPE,
    &s3rec::RECIPE,
    &grcn::RECIPE,
    &dualgnn::RECIPE,
    &mvrnn::RECIPE,
    &clcrec::RECIPE,
    &masr::RECIPE,
];

/// The recipe of the model `name`.
pub fn recipe(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().copied().find(|recipe| recipe.name == name)
}
