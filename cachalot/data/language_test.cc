#include "data/language.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace cachalot {
namespace {

// Sentences written for this test, of about a hundred letters each.
const std::pair<std::string_view, std::string_view> kTexts[] = {
    {"en",
     "The ship left the harbour before dawn, and nobody on the quay knew when she would come back from the "
     "north."},
    {"de",
     "Das Schiff verließ den Hafen vor der Morgendämmerung, und niemand am Ufer wusste, wann es zurückkehren "
     "würde."},
    {"fr",
     "Le navire a quitté le port avant l'aube, et personne sur le quai ne savait quand il reviendrait du "
     "grand nord."},
    {"es",
     "El barco salió del puerto antes del amanecer y nadie en el muelle sabía cuándo volvería de las aguas "
     "del norte."},
    {"it",
     "La nave lasciò il porto prima dell'alba e nessuno sul molo sapeva quando sarebbe tornata dalle acque "
     "del nord."},
    {"pt",
     "O navio deixou o porto antes do amanhecer e ninguém no cais sabia quando ele voltaria das águas frias "
     "do norte."},
    {"nl",
     "Het schip verliet de haven voor zonsopgang en niemand op de kade wist wanneer het uit het noorden "
     "terug zou komen."},
    {"sv",
     "Skeppet lämnade hamnen före gryningen, och ingen på kajen visste när det skulle komma tillbaka från "
     "norr igen."},
    {"pl",
     "Statek opuścił port przed świtem i nikt na nabrzeżu nie wiedział, kiedy wróci z dalekiej północy do "
     "domu."},
    {"cs",
     "Loď opustila přístav před úsvitem a nikdo na nábřeží nevěděl, kdy se vrátí zpět z dalekého severu "
     "domů."},
    {"fi",
     "Laiva lähti satamasta ennen aamunkoittoa, eikä kukaan laiturilla tiennyt, milloin se palaisi takaisin "
     "pohjoisesta."},
    {"hu",
     "A hajó hajnal előtt elhagyta a kikötőt, és a rakparton senki sem tudta, mikor fog visszatérni a messzi "
     "északról."},
    {"tr",
     "Gemi şafaktan önce limandan ayrıldı ve rıhtımdaki hiç kimse kuzeyden ne zaman geri döneceğini "
     "bilmiyordu."},
    {"ru",
     "Корабль вышел из гавани до рассвета, и никто на причале не знал, когда он вернётся обратно с далёкого "
     "севера. Так говорили потом все, кто жил у моря и помнил этот день."},
    {"uk",
     "Корабель вийшов із гавані до світанку, і ніхто на причалі не знав, коли він повернеться назад із "
     "далекої півночі."},
    {"ar",
     "غادرت السفينة الميناء قبل الفجر، ولم يكن أحد على الرصيف يعرف متى ستعود من الشمال البعيد إلى ديارها مرة "
     "أخرى."},
    {"hi", "जहाज़ भोर होने से पहले बंदरगाह से निकल गया, और घाट पर खड़ा कोई भी नहीं जानता था कि वह उत्तर से कब लौटेगा।"},
    {"zh", "那艘船在黎明之前离开了港口，码头上没有人知道它什么时候会从遥远的北方回来。"},
    {"ja", "その船は夜明け前に港を出て行き、いつ北の海から戻って来るのかを岸壁にいた人は誰も知らなかった。"},
    {"ko",
     "그 배는 동이 트기 전에 항구를 떠났고, 부두에 있던 사람들 가운데 아무도 언제 돌아올지 알지 못했다."},
    {"el",
     "Το πλοίο έφυγε από το λιμάνι πριν από την αυγή και κανείς στην προβλήτα δεν ήξερε πότε θα επέστρεφε."},
    {"th", "เรือออกจากท่าก่อนรุ่งสาง และไม่มีใครบนท่าเรือรู้ว่าเมื่อไรมันจะกลับมาจากทางเหนือ"},
};

TEST(Language, ASentenceIsEnough) {
  for (const auto& [code, text] : kTexts) {
    const Language language = identify_language(text);
    EXPECT_EQ(language.code, code) << text;
    EXPECT_GT(language.share, 0.4) << text;
  }
}

TEST(Language, ShareSaysHowMuchOfTheTextIsInTheLanguage) {
  std::string half;
  for (int i = 0; i < 6; ++i) half += std::string(kTexts[0].second) + "\n";
  EXPECT_GT(identify_language(half).share, 0.95);
  for (int i = 0; i < 5; ++i) half += std::string(kTexts[1].second) + "\n";
  const Language mixed = identify_language(half);
  EXPECT_EQ(mixed.code, "en");
  EXPECT_NEAR(mixed.share, 0.55, 0.15);
}

TEST(Language, WhatIsNoLanguageIsUndetermined) {
  for (const char* text : {"", "12345 67890 ++ -- {}", "...", "\xF0\x9F\x98\x80"})
    EXPECT_EQ(identify_language(text).code, "und") << text;
  std::string noise;  // letters as they come
  for (uint32_t i = 0, x = 7; i < 3000; ++i) {
    x = x * 1664525 + 1013904223;
    noise += x >> 28 < 2 ? ' ' : char('a' + (x >> 16) % 26);
  }
  EXPECT_EQ(identify_language(noise).code, "und");
}

TEST(Language, KnownOnesAreSortedAndHoldEveryAnswer) {
  const auto known = known_languages();
  EXPECT_TRUE(std::is_sorted(known.begin(), known.end()));
  EXPECT_GT(known.size(), 60u);
  for (const auto& [code, text] : kTexts) EXPECT_TRUE(std::binary_search(known.begin(), known.end(), code));
}

}  // namespace
}  // namespace cachalot
