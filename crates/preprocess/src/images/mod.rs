//! Resolves the names of images in raw data to existing files or to URLs, and never to a file outside the data folder.

mod files;
mod folder;
mod pattern;
mod resolver;

pub use files::{images_in, images_of_pattern, is_image_name, is_sound_name};
pub use folder::ImageFolder;
pub use pattern::ImagePattern;
pub use resolver::{DATA, EmbeddedImages, Resolver, data_url};
