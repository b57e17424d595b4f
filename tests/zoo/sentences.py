"""Plain English for the sentence embeddings: what to calibrate on, what to evaluate on, and what means the same."""

CALIBRATION = """The ferry to the island leaves every morning at seven.
She forgot her umbrella on the bus and came home soaked.
Our neighbours are painting their fence bright blue.
Inflation slowed for the third month in a row.
How do I reset the password of my router?
The committee postponed its decision until after the summer.
Whisk the eggs with sugar until the mixture turns pale.
A small earthquake was felt along the coast last night.
He has been learning the violin since he was six.
The court ruled that the contract was void.
Please find the signed invoice attached.
Honey bees tell each other where the flowers are by dancing.
I would not recommend this hotel; the room was dirty and loud.
The new bridge cut the drive to the airport by half an hour.
Vaccines train the immune system to recognise a virus.
Why is the sky red at sunset?
The goalkeeper saved two penalties in the final.
They moved to a farm with three goats and a donkey.
Save the file before you close the editor.
The museum shows photographs from the early days of aviation.
My grandmother bakes bread in a wood oven every Saturday.
Shares of the chip maker rose nine percent after the report.
It has rained without a break since Tuesday.
The glacier has lost a third of its length in fifty years.
Can you lend me your ladder for the weekend?
The spacecraft entered orbit around Jupiter after five years.
Children under twelve travel free of charge.
The novel follows three sisters through the war.
Turn left at the church and follow the river.
This phone's battery lasts two days and the camera is superb.
Doctors advised him to give up salt and cigarettes.
The orchestra opened the season with a symphony by Mahler.
A sorted list can be searched in logarithmic time.
Police are looking for a man in a green jacket.
The tomatoes ripened early because of the warm spring.
We regret to inform you that the flight has been cancelled.
The old lighthouse is now a guest house.
Is it safe to eat mushrooms that grow on dead trees?
Her thesis is about the trade routes of the Phoenicians.
The train was so full that we stood all the way to Milan.
Wolves have returned to the valley after a century.
Add a pinch of saffron to the rice.
The senator denied that he had met the lobbyist.
Water boils at a lower temperature on a mountain.
He bought a second hand bicycle and repaired it himself.
The library lends tools and board games as well.
The programme crashes when the input is empty.
Most of the town's power now comes from the wind.
You are welcome to bring a friend to the party.
The sculpture is carved from a single block of marble.
An apple a day keeps the doctor away.
The merger will create the country's largest bank.
She speaks four languages but reads only two.
The dog barked at the postman through the window.
Tides are caused by the pull of the moon and the sun.
We painted the nursery yellow before the baby came.
The marathon runners crossed the bridge at dawn.
Interest is paid at the end of every quarter.
I have never seen so many stars as in that desert.
The cheese is aged in caves for at least a year.
Farmers blocked the motorway with their tractors.
What time does the pharmacy close on Sundays?
The patient was discharged two days after the operation.
Old maps often show islands that never existed.""".splitlines()

EVALUATION = """The night bus stops in front of the town hall.
He spilled coffee over the keyboard during the meeting.
The city plans to plant ten thousand trees by spring.
Unemployment fell to its lowest level in ten years.
How can I remove red wine from a white carpet?
Parliament passed the budget by a single vote.
Knead the dough for ten minutes and let it rest.
Lava from the volcano reached the sea on Friday.
She plays chess online with people from all over the world.
The judge dismissed the case for lack of evidence.
Your parcel will be delivered between noon and two.
Octopuses have three hearts and blue blood.
The soup was cold and the waiter ignored us.
A tunnel under the mountain will open next year.
Antibiotics do not help against the common cold.
Why do cats purr when they are content?
The striker tore a muscle and will miss the season.
The couple turned an old barn into a theatre.
Restart the computer after you install the update.
The gallery bought a lost painting by Vermeer.
My uncle keeps pigeons on the roof of his house.
The airline's profits doubled as fuel became cheaper.
Fog kept the fishing boats in the harbour.
The coral reefs are bleaching in the warming ocean.
May I borrow a pencil and a sheet of paper?
The telescope saw galaxies that formed soon after the big bang.
Dogs must be kept on a lead in the park.
The film tells the story of a deaf drummer.
Cross the square and take the second street on the right.
These headphones are comfortable, but they hiss a little.
The nurse told her to rest and drink a lot of water.
The choir sang carols on the steps of the cathedral.
A hash table finds a key in constant time on average.
Thieves broke into the jewellery shop through the roof.
The grapes were harvested two weeks late this year.
All trains to the north are delayed because of snow.
The castle was besieged four times and never taken.
Can I freeze cooked pasta and eat it later?
His lecture dealt with the grammar of extinct languages.
The lift was broken, so we carried the piano upstairs.
A family of beavers dammed the brook behind the mill.
Season the fish with lemon, dill and black pepper.
The minister resigned over the leaked letters.
Sound travels faster in water than in air.
She sews her own dresses from old curtains.
The school offers lessons in pottery and carpentry.
The server runs out of memory when too many users log in.
Half of the region's homes are heated with gas.
Let me know if you would like to join us for dinner.
The cathedral's windows date from the thirteenth century.
The early bird catches the worm.
The carmaker will close two of its factories.
He writes with his left hand and throws with his right.
The parrot learned to imitate the telephone.
The seasons come about because the earth's axis is tilted.
They named their daughter after a river.
Thousands of cyclists rode through the streets at midnight.
The loan must be repaid within five years.
From the summit we saw the sea on both sides.
The whisky matures in barrels that held sherry.
Teachers went on strike for higher pay.
Which platform does the express leave from?
The surgeon replaced her hip in under an hour.
Letters from the front took weeks to arrive.""".splitlines()

# Two that mean nearly the same, and one about something else.
PARAPHRASES = (
    ("A man is playing a guitar.", "Someone plays the guitar.", "The stock market fell sharply today."),
    ("How do I change my password?", "What are the steps to reset my password?", "The lake froze over in January."),
    ("The cat sleeps on the sofa.", "A cat is asleep on the couch.", "Exports of steel rose last year."),
    ("It is raining heavily outside.", "There is a downpour outdoors.", "He learned to solder at school."),
    ("The film was boring and too long.", "The movie dragged on and was dull.", "Mix the flour with the butter."),
    ("She bought a new car.", "She has purchased a new automobile.", "Whales sing to one another."),
)
