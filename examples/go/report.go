// Work in Go as a task, with the standard library alone: go run report.go
// HEADWAY_URL and, where keys are used, HEADWAY_API_KEY.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
)

type object = map[string]any

var token = os.Getenv("HEADWAY_API_KEY")

func tell(method, path string, said object) object {
	body, _ := json.Marshal(said)
	request, err := http.NewRequest(method, os.Getenv("HEADWAY_URL")+path, bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	told := object{}
	if json.NewDecoder(answer.Body).Decode(&told); answer.StatusCode >= 300 {
		log.Fatal(told["detail"])
	}
	return told
}

func main() {
	task := tell("POST", "/tasks", object{"producer": "go-report", "total": 3})
	path, rows := fmt.Sprint("/tasks/", task["task_id"]), 3
	token = fmt.Sprint(task["producer_token"])
	for done := 1; done <= rows; done++ {
		if tell("PATCH", path+"/progress", object{"attempt": 1, "done": done})["cancelled"] == true {
			os.Exit(1)
		}
	}
	tell("POST", path+"/complete", object{"attempt": 1, "summary": object{"rows": rows}})
}
