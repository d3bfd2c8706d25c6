//! The roles of the files that a stage reads: its records, the headers of what it writes, and messages name a file by its role.

/// The users' events.
pub const SEQUENCES: &str = "sequences";
/// The items with their texts and images.
pub const ITEMS: &str = "items";
/// The ids of users.
pub const USERS: &str = "users";
/// The weights that rank the items.
pub const WEIGHTS: &str = "fine-tuned weights";
/// The weights with which fine-tuning starts.
pub const PRETRAINED_WEIGHTS: &str = "pre-trained weights";

const FEATURES: &str = "features of ";

/// The role of the features of a modality.
pub fn features(modality: &str) -> String {
    format!("{FEATURES}{modality}")
}

/// The modality whose features have this role; `None` if it is the role of another file.
pub fn modality(role: &str) -> Option<&str> {
    role.strip_prefix(FEATURES)
}
