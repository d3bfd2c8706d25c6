//! What the names of columns mean, in the vocabulary of shops, of published datasets and of several languages.

use mp4sr_pipeline::text::tokens;

/// What a column may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    User,
    Item,
    Time,
    Position,
    Rating,
    /// Kinds of events, such as views and purchases.
    Kind,
    Title,
    Maker,
    Category,
    LongText,
    Image,
    /// Prices, amounts and quantities.
    Price,
    /// Ids, links and codes, which mean nothing in a sentence.
    Code,
}

/// The names that denote a role as a whole, the most certain first, and the words that denote it as a part of a name.
struct Vocabulary {
    names: &'static [&'static str],
    words: &'static [&'static str],
}

impl Role {
    fn vocabulary(self) -> Vocabulary {
        let (names, words): (&[&str], &[&str]) = match self {
            Self::User => (
                &[
                    "userid",
                    "user",
                    "uid",
                    "customerid",
                    "customer",
                    "reviewerid",
                    "username",
                    "visitorid",
                    "memberid",
                    "buyerid",
                    "clientid",
                    "accountid",
                    "personid",
                    "playerid",
                    "profileid",
                    "msno",
                    "u",
                    "customernumber",
                    "kundennummer",
                    "kundennr",
                    "kundenid",
                    "sessionid",
                    "session",
                ],
                &[
                    "user",
                    "customer",
                    "reviewer",
                    "member",
                    "buyer",
                    "visitor",
                    "client",
                    "account",
                    "player",
                    "reader",
                    "listener",
                    "kunde",
                    "kunden",
                    "person",
                    "profile",
                    "cust",
                    "shopper",
                    "patron",
                    "subscriber",
                    "learner",
                    "student",
                    "usr",
                    "utilisateur",
                    "usuario",
                    "cliente",
                    "session",
                ],
            ),
            Self::Item => (
                &[
                    "itemid",
                    "item",
                    "iid",
                    "productid",
                    "product",
                    "parentasin",
                    "asin",
                    "movieid",
                    "bookid",
                    "isbn",
                    "articleid",
                    "businessid",
                    "gameid",
                    "appid",
                    "trackid",
                    "songid",
                    "videoid",
                    "newsid",
                    "recipeid",
                    "courseid",
                    "goodsid",
                    "sku",
                    "stockcode",
                    "productcode",
                    "itemcode",
                    "i",
                    "artikelnummer",
                    "artikelnr",
                    "ean",
                    "upc",
                ],
                &[
                    "item",
                    "product",
                    "article",
                    "movie",
                    "book",
                    "asin",
                    "isbn",
                    "sku",
                    "business",
                    "game",
                    "app",
                    "track",
                    "song",
                    "artist",
                    "video",
                    "news",
                    "recipe",
                    "course",
                    "goods",
                    "venue",
                    "place",
                    "beer",
                    "film",
                    "produkt",
                    "artikel",
                    "stock",
                    "listing",
                    "offer",
                    "anime",
                    "restaurant",
                    "hotel",
                    "podcast",
                    "produit",
                    "producto",
                    "prodotto",
                ],
            ),
            Self::Time => (
                &[
                    "timestamp",
                    "unixreviewtime",
                    "time",
                    "datetime",
                    "eventtime",
                    "ts",
                    "date",
                    "createdat",
                    "purchasedate",
                    "orderdate",
                    "invoicedate",
                    "reviewdate",
                    "dateadded",
                    "tdat",
                    "purchasedat",
                    "orderedat",
                    "visittime",
                    "zeit",
                    "datum",
                    "zeitstempel",
                    "bestelldatum",
                ],
                &[
                    "timestamp",
                    "time",
                    "datetime",
                    "date",
                    "dat",
                    "created",
                    "at",
                    "when",
                    "datum",
                    "zeit",
                    "day",
                    "ts",
                    "fecha",
                ],
            ),
            Self::Position => (
                &[
                    "position",
                    "pos",
                    "rank",
                    "seq",
                    "sequence",
                    "step",
                    "eventorder",
                    "orderinsession",
                    "addtocartorder",
                ],
                &["position", "sequence", "step"],
            ),
            Self::Rating => (
                &[
                    "rating",
                    "stars",
                    "score",
                    "overall",
                    "bookrating",
                    "grade",
                    "rate",
                    "note",
                    "bewertung",
                    "starrating",
                ],
                &["rating", "stars", "score", "grade", "bewertung"],
            ),
            Self::Kind => (
                &[
                    "event",
                    "eventtype",
                    "action",
                    "actiontype",
                    "behavior",
                    "behaviour",
                    "behaviortype",
                    "type",
                    "interaction",
                ],
                &["event", "action", "behavior", "behaviour"],
            ),
            Self::Title => (
                &[
                    "title",
                    "name",
                    "productname",
                    "itemname",
                    "producttitle",
                    "itemtitle",
                    "prodname",
                    "appname",
                    "booktitle",
                    "movietitle",
                    "trackname",
                    "songtitle",
                    "articletitle",
                    "headline",
                    "displayname",
                    "titel",
                    "titre",
                    "titulo",
                    "bezeichnung",
                    "produktname",
                    "artikelname",
                ],
                &["title", "name", "titel", "headline", "bezeichnung"],
            ),
            Self::Maker => (
                &["brand", "manufacturer", "author", "publisher", "developer", "store", "vendor"],
                &[
                    "brand",
                    "manufacturer",
                    "maker",
                    "author",
                    "authors",
                    "publisher",
                    "developer",
                    "artist",
                    "director",
                    "vendor",
                    "seller",
                    "label",
                    "marke",
                    "hersteller",
                    "autor",
                    "actors",
                    "cast",
                    "designer",
                    "company",
                    "store",
                ],
            ),
            Self::Category => (
                &["category", "categories", "genre", "genres", "department", "section", "kategorie", "kategorien"],
                &[
                    "category",
                    "categories",
                    "genre",
                    "genres",
                    "department",
                    "section",
                    "subcategory",
                    "subject",
                    "subjects",
                    "shelf",
                    "shelves",
                    "topic",
                    "topics",
                    "kategorie",
                    "kategorien",
                    "warengruppe",
                ],
            ),
            Self::LongText => (
                &["description", "plot", "overview", "summary", "synopsis", "abstract", "text", "body", "beschreibung"],
                &[
                    "description",
                    "desc",
                    "plot",
                    "overview",
                    "summary",
                    "synopsis",
                    "abstract",
                    "text",
                    "body",
                    "content",
                    "details",
                    "features",
                    "about",
                    "beschreibung",
                    "review",
                ],
            ),
            Self::Image => (
                &[
                    "image",
                    "images",
                    "imageurl",
                    "imurl",
                    "img",
                    "picture",
                    "photo",
                    "poster",
                    "cover",
                    "thumbnail",
                    "bild",
                ],
                &[
                    "image",
                    "images",
                    "img",
                    "imurl",
                    "picture",
                    "pictures",
                    "photo",
                    "photos",
                    "poster",
                    "cover",
                    "thumbnail",
                    "thumb",
                    "bild",
                    "bilder",
                    "pic",
                ],
            ),
            Self::Price => (
                &["price", "preis", "cost"],
                &[
                    "price", "preis", "cost", "amount", "quantity", "qty", "total", "revenue", "menge", "betrag",
                    "anzahl",
                ],
            ),
            Self::Code => (
                &["id", "url", "link", "slug", "lang", "language", "currency", "status", "ean", "isbn", "sku"],
                &[
                    "id", "url", "link", "href", "slug", "code", "nr", "no", "number", "ean", "isbn", "upc", "sku",
                    "asin", "uuid", "hash",
                ],
            ),
        };
        Vocabulary { names, words }
    }

    /// How well a name fits: 10 or a little less if the whole name denotes the role, 6 if one of its words does, or 7 if another word is
    /// `id`, and 0 otherwise.
    pub fn score(self, name: &str) -> f64 {
        let tokens = tokens(name);
        let joined = tokens.concat();
        let Vocabulary { names, words } = self.vocabulary();
        if let Some(at) = names.iter().position(|known| *known == joined) {
            return 10.0 - 0.05 * at as f64;
        }
        let has = |word: &&&str| tokens.iter().any(|token| token == *word);
        let of_an_id = tokens.iter().any(|token| token == "id");
        match words.iter().find(has) {
            Some(_) => 6.0 + if of_an_id { 1.0 } else { 0.0 },
            None => 0.0,
        }
    }

    /// Whether a name fits at all.
    pub fn fits(self, name: &str) -> bool {
        self.score(name) > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_recognised_by_their_words() {
        for (role, name) in [
            (Role::User, "CustomerID"),
            (Role::User, "reviewerID"),
            (Role::Item, "parent_asin"),
            (Role::Item, "StockCode"),
            (Role::Time, "t_dat"),
            (Role::Time, "InvoiceDate"),
            (Role::Title, "Book-Title"),
            (Role::Category, "department_name"),
            (Role::Maker, "Book-Author"),
            (Role::Image, "imageURLHighRes"),
            (Role::LongText, "detail_desc"),
        ] {
            assert!(role.fits(name), "{role:?} {name}");
        }
        assert!(Role::User.score("user_id") > Role::User.score("session_id"));
        assert!(!Role::User.fits("rating") && !Role::Item.fits("timestamp") && !Role::Time.fits("title"));
    }
}
