//! Runs miniatures of published datasets, generated in their forms, through the pipelines that we ship for them.

use std::path::Path;

use mp4sr_artifact::Layout;
use mp4sr_tests::{gzip, root};

use crate::harness::{Dataset, histories, item, read, run};

/// The dataset that the pipeline `name` builds from these raw files.
fn made(name: &str, files: &[(&str, Vec<u8>)]) -> Dataset {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for (name, content) in files {
        let path = data.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let all = ["--set", "preprocess.user_core=0", "--set", "preprocess.item_core=0"];
    let artifacts = folder.path().join("artifacts");
    let output = run(&root().join(format!("pipelines/{name}.toml")), &data, &artifacts, &all);
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let made = read(&Layout::new(&artifacts, name, "default"));
    assert_eq!(made.report.interactions.rejected.total() + made.report.items.rejected.total(), 0, "{name}");
    made
}

fn latin_1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

#[test]
fn movielens_100k() {
    let flags = "|0".repeat(19);
    let items =
        format!("1|Les Mis\u{e9}rables (1995)|01-Jan-1995||http://us.imdb.com/1{flags}\n2|\"Heat\" (1995)|||{flags}\n");
    let made = made(
        "movielens-100k",
        &[
            ("ml-100k/u.data", b"196\t2\t3\t881250949\n196\t1\t3\t881250948\n".to_vec()),
            ("ml-100k/u.item", latin_1(&items)),
        ],
    );
    assert_eq!(histories(&made)["196"], ["1", "2"]);
    assert_eq!(item(&made, "1").1, ["Les Mis\u{e9}rables (1995)", "01-Jan-1995"]);
    assert_eq!(item(&made, "2").0, "\"Heat\" (1995)");
}

#[test]
fn movielens_1m() {
    let made = made(
        "movielens-1m",
        &[
            ("ml-1m/ratings.dat", b"1::1193::5::978300761\n1::661::3::978300760\n".to_vec()),
            (
                "ml-1m/movies.dat",
                latin_1("1193::Caf\u{e9}: a film (1975)::Drama|Film-Noir\n661::James (1996)::Musical\n"),
            ),
        ],
    );
    assert_eq!(histories(&made)["1"], ["661", "1193"]);
    assert_eq!(item(&made, "1193").1, ["Caf\u{e9}: a film (1975)", "Drama, Film-Noir"]);
    assert_eq!(made.items.categories, [vec!["Drama", "Film-Noir"], vec!["Musical"]]);
}

#[test]
fn movielens_25m() {
    let made = made(
        "movielens-25m",
        &[
            ("ml-25m/ratings.csv", b"userId,movieId,rating,timestamp\r\n1,296,5.0,1147880045\r\n1,306,3.5,1147880044\r\n".to_vec()),
            (
                "ml-25m/movies.csv",
                b"movieId,title,genres\r\n296,\"American President, The (1995)\",Comedy|Drama\r\n306,Short (2017),(no genres listed)\r\n".to_vec(),
            ),
        ],
    );
    assert_eq!(histories(&made)["1"], ["306", "296"]);
    assert_eq!(item(&made, "296").1, ["American President, The (1995)", "Comedy, Drama"]);
    assert_eq!(item(&made, "306").1, ["Short (2017)"]);
    assert_eq!(made.items.categories[1], Vec::<String>::new());
    assert_eq!(made.report.items.dropped_texts.total(), 1);
}

#[test]
fn book_crossing() {
    let images =
        "\"http://images.amazon.com/S.jpg\";\"http://images.amazon.com/M.jpg\";\"http://images.amazon.com/L.jpg\"";
    let books = format!(
        "\"ISBN\";\"Book-Title\";\"Book-Author\";\"Year-Of-Publication\";\"Publisher\";\"Image-URL-S\";\"Image-URL-M\";\"Image-URL-L\"\n\
         \"0195153448\";\"Classical \\\"Mythology\\\"; a story\";\"Andr\u{e9} M. &amp; Sons\";\"2002\";\"Oxford\";{images}\n\
         \"034545104X\";\"Flesh Tones\";\"M. J. Rose\";\"2002\";\"Ballantine\";{images}\n"
    );
    let made = made(
        "book-crossing",
        &[
            ("BX-Book-Ratings.csv", b"\"User-ID\";\"ISBN\";\"Book-Rating\"\n\"276725\";\"034545104X\";\"0\"\n\"276725\";\"0195153448\";\"5\"\n".to_vec()),
            ("BX-Books.csv", latin_1(&books)),
        ],
    );
    assert_eq!(histories(&made)["276725"], ["034545104X", "0195153448"]);
    assert_eq!(item(&made, "0195153448").1, ["Classical \"Mythology\"; a story", "Andr\u{e9} M. & Sons", "Oxford"]);
    assert_eq!(item(&made, "0195153448").2, ["http://images.amazon.com/L.jpg"]);
}

#[test]
fn steam() {
    let reviews = "{u'username': u'Walker', u'product_id': u'725280', u'date': u'2017-12-18', u'text': u'it\\'s', u'early_access': False}\n\
                   {u'username': u'Walker', u'product_id': u'328100', u'date': u'2017-12-17', u'hours': 7.5}\n";
    let games = "{u'id': u'725280', u'app_name': u'Lost \\u2122', u'genres': [u'Action', u'Indie'], u'developer': u'Kotoshiro', u'specs': [u'Single-player']}\n\
                 {u'id': u'328100', u'app_name': u'Ironbound', u'tags': [u'Strategy'], u'price': None}\n";
    let made = made("steam", &[("steam_reviews.json.gz", gzip(reviews)), ("steam_games.json.gz", gzip(games))]);
    assert_eq!(histories(&made)["Walker"], ["328100", "725280"]);
    assert_eq!(item(&made, "725280").1, ["Lost \u{2122}", "Kotoshiro", "Action, Indie", "Single-player"]);
    assert_eq!(made.items.categories[0], ["Action", "Indie"]);
}

#[test]
fn yelp() {
    let reviews = "{\"review_id\":\"r1\",\"user_id\":\"u\",\"business_id\":\"b1\",\"stars\":3.0,\"text\":\"x\",\"date\":\"2018-07-07 22:09:11\"}\n\
                   {\"review_id\":\"r2\",\"user_id\":\"u\",\"business_id\":\"b2\",\"stars\":5.0,\"text\":\"y\",\"date\":\"2012-01-03 15:28:18\"}\n";
    let businesses = "{\"business_id\":\"b1\",\"name\":\"Abby Rappoport\",\"city\":\"Goleta\",\"attributes\":{\"ByAppointmentOnly\":\"True\"},\"categories\":\"Doctors, Health & Medical\"}\n\
                      {\"business_id\":\"b2\",\"name\":\"Target\",\"city\":\"Tucson\",\"attributes\":null,\"categories\":null}\n";
    let made = made(
        "yelp",
        &[
            ("yelp_academic_dataset_review.json", reviews.as_bytes().to_vec()),
            ("yelp_academic_dataset_business.json", businesses.as_bytes().to_vec()),
        ],
    );
    assert_eq!(histories(&made)["u"], ["b2", "b1"]);
    assert_eq!(
        item(&made, "b1").1,
        ["Abby Rappoport", "Doctors, Health & Medical", "Goleta", "ByAppointmentOnly: True"]
    );
    assert_eq!(made.items.categories[0], ["Doctors", "Health & Medical"]);
    assert_eq!(made.sequences.times, [1_325_604_498, 1_531_001_351]);
}

#[test]
fn h_and_m() {
    let made = made(
        "h-and-m",
        &[
            (
                "transactions_train.csv",
                b"t_dat,customer_id,article_id,price,sales_channel_id\n2018-09-21,c1,0663713001,0.05,2\n2018-09-20,c1,0108775015,0.03,2\n".to_vec(),
            ),
            (
                "articles.csv",
                b"article_id,prod_name,product_type_name,colour_group_name,detail_desc,department_name,section_name\n\
                  0663713001,Atlanta Push,Bra,Black,\"Lace bra, lined. Soft.\",Expressive Lingerie,Lingerie\n\
                  0108775015,Strap top,Vest top,Black,Jersey top.,Jersey Basic,Basics\n"
                    .to_vec(),
            ),
            ("images/066/0663713001.jpg", b"x".to_vec()),
        ],
    );
    assert_eq!(histories(&made)["c1"], ["0108775015", "0663713001"]);
    assert_eq!(item(&made, "0663713001").1, ["Atlanta Push", "Bra", "Black", "Lace bra, lined.", "Soft."]);
    let images = item(&made, "0663713001").2;
    assert!(images.len() == 1 && Path::new(&images[0]).ends_with("images/066/0663713001.jpg"), "{images:?}");
    assert!(item(&made, "0108775015").2.is_empty());
}

#[test]
fn microlens() {
    let made = made(
        "microlens",
        &[
            ("MicroLens-50k_pairs.csv", b"user,item,timestamp\n1,7,1583378629552\n1,8,1583378629551\n".to_vec()),
            (
                "MicroLens-50k_titles.csv",
                "item,title\n7,\u{7f8e}\u{98df} \"one\"\n8,\"Two, three\"\n".as_bytes().to_vec(),
            ),
            ("MicroLens-50k_covers/7.jpg", b"x".to_vec()),
        ],
    );
    assert_eq!(histories(&made)["1"], ["8", "7"]);
    assert_eq!(item(&made, "8").0, "Two, three");
    assert_eq!(item(&made, "7").2.len(), 1);
}
