// Show a user's posters and tell Pigeon about it; the standard library only.
// PIGEON_URL=http://127.0.0.1:8080 PIGEON_TOKEN=... go run posters.go u1 m50,m51
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"time"
)

type poster struct {
	Item     string  `json:"item"`
	Source   string  `json:"source"`
	ImageURL *string `json:"image_url"`
	Showing  *string `json:"showing"`
}

type event struct {
	Showing  string `json:"showing"`
	Action   string `json:"action"`
	Position int    `json:"position"`
}

var client = &http.Client{Timeout: 15 * time.Second}

func ask(request *http.Request, into any) error {
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 400 {
		words, _ := io.ReadAll(answer.Body)
		return fmt.Errorf("%s: %s", answer.Status, words)
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

func main() {
	base := os.Getenv("PIGEON_URL")
	query := url.Values{"items": {os.Args[2]}}
	where := base + "/v1/users/" + url.PathEscape(os.Args[1]) + "/posters?" + query.Encode()
	request, err := http.NewRequest(http.MethodGet, where, nil)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("PIGEON_TOKEN"))
	var page struct {
		Posters []poster `json:"posters"`
	}
	if err := ask(request, &page); err != nil {
		log.Fatal(err)
	}
	events := []event{}
	for place, one := range page.Posters {
		fmt.Println(place, one.Item, one.Source)
		if one.Showing != nil {
			events = append(events, event{*one.Showing, "impression", place})
		}
	}
	if len(events) == 0 {
		return
	}
	body, err := json.Marshal(map[string]any{"events": append(events, event{events[0].Showing, "click", events[0].Position})})
	if err != nil {
		log.Fatal(err)
	}
	request, err = http.NewRequest(http.MethodPost, base+"/v1/feedback", bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	var told struct {
		Accepted int `json:"accepted"`
	}
	if err := ask(request, &told); err != nil {
		log.Fatal(err)
	}
	fmt.Println("told:", told.Accepted)
}
