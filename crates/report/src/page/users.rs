//! The recommended items of some users, beside their recent histories.

use std::collections::HashMap;

use maud::{Markup, PreEscaped, html};
use mp4sr_pipeline::text::count;

use super::Page;
use crate::thumbnail::{Thumbnail, thumbnail};
use crate::users::{ShownUser, UserCounts};

/// The maximum size of the section in bytes; further users are left out.
const MOST_BYTES: usize = 2_600_000;

impl Page<'_> {
    pub(super) fn users_section(&self) -> Markup {
        if self.users.is_empty() {
            return html! {};
        }
        let UserCounts { users, known, hits } = self.user_counts;
        let mut images = HashMap::new();
        let (mut body, mut shown) = (String::new(), 0);
        for user in self.users {
            let next = self.user(user, &mut images).into_string();
            if body.len() + next.len() > MOST_BYTES {
                break;
            }
            body.push_str(&next);
            shown += 1;
        }
        html! {
            section #users {
                h2 { "Recommendations" }
                @if known > 0 {
                    p {
                        "The true next item is in the list of " (count(hits as u64)) " of " (count(known as u64))
                        " users (" (format!("{:.1}", 100.0 * hits as f64 / known as f64)) " %). "
                        "The users below are not hand-picked: for half of them, the next item is in the list, and for half it is not. "
                        "Each half is evenly spaced over the user numbers (if one has too few users, more of the other are shown), so \
                         hits are over-represented."
                    }
                } @else {
                    p {
                        "The next items are not known, because the lists follow whole sequences. The users below are not hand-picked "
                        "but evenly spaced over all " (count(users as u64)) "."
                    }
                }
                (PreEscaped(body))
                @if shown < self.users.len() {
                    p.soft { (self.users.len() - shown) " more users are left out to keep this page small." }
                }
            }
        }
    }

    fn user(&self, user: &ShownUser, images: &mut HashMap<usize, Thumbnail>) -> Markup {
        let (recent, top) = (user.recent(), user.top());
        let hit = user.target.and_then(|target| user.list.iter().position(|&item| item == target));
        html! {
            section.user {
                h3 { "User " (user.user) " " span.soft { "(" (user.user_id) ")" } }
                @if user.target.is_some() {
                    p {
                        @if let Some(at) = hit { "The true next item is in position " (at + 1) " of the list." }
                        @else { "The true next item is not in the list" @if let Some(rank) = user.rank {
                            "; its rank is " (count(rank.into())) " of " (count(self.items.len() as u64)) } "." }
                    }
                }
                h4 {
                    "History, oldest first"
                    @if recent.len() < user.history.len() {
                        " (the last " (recent.len()) " of " (user.history.len()) " items)"
                    }
                    @if user.target.is_some() { ", and what came next" }
                }
                ol.cards {
                    @for &item in recent { (self.card(item, None, false, images)) }
                    @if let Some(target) = user.target { (self.card(target, None, true, images)) }
                }
                h4 {
                    "Recommended, best first"
                    @if top.len() < user.list.len() { " (the first " (top.len()) " of " (user.list.len()) ")" }
                }
                ol.cards {
                    @for (at, &item) in top.iter().enumerate() {
                        (self.card(item, Some(at + 1), user.target == Some(item), images))
                    }
                }
            }
        }
    }

    fn card(&self, item: usize, rank: Option<usize>, next: bool, images: &mut HashMap<usize, Thumbnail>) -> Markup {
        let text = |column: &[String]| column.get(item).filter(|text| !text.is_empty()).cloned();
        let title = text(&self.items.titles);
        let name = title.clone().or_else(|| text(&self.items.ids)).unwrap_or_default();
        let files = self.items.images.get(item).map_or(&[][..], Vec::as_slice);
        let image = images.entry(item).or_insert_with(|| thumbnail(files));
        html! {
            li.card.next[next] title=(name) {
                @match image {
                    Thumbnail::Shown(url) => img src=(url) alt="" loading="lazy";,
                    Thumbnail::None => span.none { "no image" },
                    Thumbnail::NotFetched => span.none { "image not downloaded" },
                    Thumbnail::Missing => span.none { "image file is missing" },
                    Thumbnail::Broken => span.none { "image does not decode" },
                }
                @if let Some(rank) = rank { span.rank { (rank) } }
                span.name { (name) }
                @if title.is_none() { span.rank { "(no title)" } }
                @if next { span.label { "true next item" } }
            }
        }
    }
}
