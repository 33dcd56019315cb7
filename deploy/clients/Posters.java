// Show a user's posters and tell Pigeon about it; Java 17 and nothing else. A JSON library would read the answer better.
// PIGEON_URL=http://127.0.0.1:8080 PIGEON_TOKEN=... java Posters.java u1 m50,m51
import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Pattern;

public class Posters {
    static final String URL = System.getenv("PIGEON_URL");
    static final HttpClient CLIENT = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(5)).build();

    static String text(String value) {
        return URLEncoder.encode(value, StandardCharsets.UTF_8).replace("+", "%20");
    }

    static String ask(HttpRequest.Builder request) throws IOException, InterruptedException {
        var answer = CLIENT.send(request.timeout(Duration.ofSeconds(15)).build(), BodyHandlers.ofString());
        if (answer.statusCode() >= 400) throw new IOException(answer.statusCode() + " " + answer.body());
        return answer.body();
    }

    static String posters(String user, String items) throws IOException, InterruptedException {
        var where = URI.create(URL + "/v1/users/" + text(user) + "/posters?items=" + text(items));
        return ask(HttpRequest.newBuilder(where).header("Authorization", "Bearer " + System.getenv("PIGEON_TOKEN")));
    }

    static String tell(List<String> events) throws IOException, InterruptedException {
        var body = HttpRequest.BodyPublishers.ofString("{\"events\": [" + String.join(", ", events) + "]}");
        var where = URI.create(URL + "/v1/feedback");
        return ask(HttpRequest.newBuilder(where).header("Content-Type", "application/json").POST(body));
    }

    public static void main(String[] arguments) throws IOException, InterruptedException {
        var shown = posters(arguments[0], arguments[1]);
        System.out.println(shown);
        var events = new ArrayList<String>();
        var showings = Pattern.compile("\"showing\": \"([^\"]+)\"").matcher(shown);
        while (showings.find()) events.add("{\"showing\": \"" + showings.group(1) + "\", \"action\": \"impression\"}");
        if (!events.isEmpty()) {
            events.add(events.get(0).replace("impression", "click"));
            System.out.println("told: " + tell(events));
        }
    }
}
